"""Figures of notebook 00."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

TOWARDS, AWAY = "#2f6ea5", "#d1495b"
OBJECTIVES = ("#2a7f9e", "#e08e0b")  # trained first, trained second


def pulls(panels: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray]]) -> Figure:
    """G of every token as a bar, and what a step on this token alone did to the NLL, as a point.

    `panels[title] = (tokens, G, real)`: `real` is the fall of the NLL for each unit of the step size.
    """
    longest = max(len(tokens) for tokens, _, _ in panels.values())
    figure, axes = plt.subplots(1, len(panels), figsize=(8.4, 0.8 + 0.3 * longest), sharex=True, layout="constrained")
    for axis, (title, (tokens, g, real)) in zip(axes, panels.items(), strict=True):
        y = np.arange(len(tokens))
        axis.axvline(0, color="0.4", lw=0.8)
        axis.barh(y, g, 0.72, color=np.where(g > 0, TOWARDS, AWAY), alpha=0.75, label="G of the token")
        axis.plot(real, y, "o", ms=5, color="black", mfc="white", label="real fall of the NLL / η")
        axis.set_yticks(y, tokens, family="monospace")
        axis.set(ylim=(longest - 0.4, -0.6), xlabel="G:  ← away from D′  ·  towards D′ →")
        axis.set_title(title, loc="left", size=10, weight="bold")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=2, frameon=False)
    return figure


def forgetting(steps: np.ndarray, margins: Mapping[str, np.ndarray], boundary: int) -> Figure:
    """Margins of held-out pairs along two stages: lines are means, bands hold the middle half of the pairs.

    steps is (S,), margins[objective] is (S, pairs), the objective of Stage 1 first; Stage 1 ends at `boundary`.
    """
    figure, axis = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
    axis.axhline(0, color="0.4", lw=0.8)
    axis.axvspan(boundary, steps[-1], color="0.95", lw=0, zorder=-2)
    for (objective, m), colour in zip(margins.items(), OBJECTIVES, strict=True):
        low, high = np.quantile(m, [0.25, 0.75], axis=1)
        axis.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
        axis.plot(steps, m.mean(1), color=colour, lw=2.4)
        axis.annotate(
            objective,
            (steps[-1], m[-1].mean()),
            (6, 0),
            textcoords="offset points",
            color=colour,
            weight="bold",
            va="center",
            annotation_clip=False,
        )
    for at, (number, objective) in zip((0, boundary), enumerate(margins, start=1), strict=True):
        words = f" Stage {number}: {objective}"
        axis.text(at, 1.0, words, transform=axis.get_xaxis_transform(), va="bottom", color="0.3")
    axis.set(xlim=(0, steps[-1]), xlabel="steps of DPO", ylabel="margin m (nats per token)")
    return figure
