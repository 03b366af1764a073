"""Figures of notebook 03."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from preflab.figures import grid

BLUE, RED = "#2a7f9e", "#d1495b"  # told apart by every kind of eye; a marker or a dash says the same again
FAMILY_COLOURS = {"dpo": BLUE, "ppo": RED}  # learns from pairs, or from its samples
FAMILY_MARKERS = {"dpo": "o", "ppo": "s"}


def forest(rows: Mapping[str, tuple], labels: Sequence[str]) -> Figure:
    """Outcomes beside a rival, a panel each, with intervals: rows[name] = (family, interval, ...), as many as labels.

    An interval without ends (of one seed) is drawn as a point.
    """
    size = 2.8 + 3.6 * len(labels), 1.1 + 0.3 * len(rows)
    figure, axes = plt.subplots(1, len(labels), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for panel, (axis, label) in enumerate(zip(axes.flat, labels, strict=True)):
        for y, (family, *intervals) in enumerate(rows.values()):
            interval, colour = intervals[panel], FAMILY_COLOURS[family]
            axis.plot([interval.low, interval.high], [y, y], color=colour, lw=1.6, alpha=0.7)
            axis.plot(interval.value, y, FAMILY_MARKERS[family], color=colour, ms=5.5)
        axis.axvline(0, color="0.4", lw=0.8, zorder=0)
        axis.set_xlabel(label, size=10)
    axes.flat[0].set_yticks(range(len(rows)), rows)
    axes.flat[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


WIDE = 10  # nats: where log-probs fall further, the scale is linear up to here and logarithmic beyond


def log_prob_paths(panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Change of the held-out pairs' log-probs since the SFT model: panels[name] = (progress, chosen, rejected),
    each (seeds, steps). Both falling is likelihood displacement."""
    figure, axes = grid(len(panels), width=2.7, height=1.9, sharey=True)
    for axis, (name, (x, chosen, rejected)) in zip(axes.flat, panels.items(), strict=False):
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        for label, curves, colour, line in (("chosen", chosen, BLUE, "-"), ("rejected", rejected, RED, "--")):
            for seed in curves:
                axis.plot(x, seed, line, color=colour, lw=0.5, alpha=0.5)
            axis.plot(x, curves.mean(0), line, color=colour, lw=1.8, label=label)
        axis.set_title(name, loc="left", size=9)
    label = "change of log π(y|x), nats"
    if max(np.abs(curves).max() for _, *both in panels.values() for curves in both) > WIDE:
        axes.flat[0].set_yscale("symlog", linthresh=WIDE)
        axes.flat[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        label += f" (linear to ±{WIDE})"
    _finished(figure, axes, label)
    return figure


def g_multiples(panels: Mapping[str, tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """G of what each row trains on, that of the plain row behind it, both means over seeds, and thin the row's seeds:
    panels[name] = (family, progress, own, plain), G being (seeds, steps)."""
    figure, axes = grid(len(panels), width=2.7, height=1.9, sharey=False)
    for axis, (name, (family, x, own, plain)) in zip(axes.flat, panels.items(), strict=False):
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.plot(x, plain.mean(0), color="0.75", lw=3.5, label="the plain method")
        for seed in own:
            axis.plot(x, seed, color=FAMILY_COLOURS[family], lw=0.5, alpha=0.5)
        axis.plot(x, own.mean(0), "o-", color=FAMILY_COLOURS[family], lw=1.6, ms=2.5, label="what is left of it")
        axis.set_title(name, loc="left", size=9)
    _finished(figure, axes, "G of the trained loss")
    return figure


def _finished(figure: Figure, axes: np.ndarray, label: str) -> None:
    """The labels that panels share; what lines mean is told above them, where it covers none."""
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.supylabel(label, size=10)
    figure.supxlabel("share of training", size=10)


def gaps(rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy of DPO margins on training (filled) and held-out (open) pairs: rows[name] = (train, held-out),
    each (seeds,). Small marks are seeds."""
    figure, axis = plt.subplots(figsize=(6.4, 0.8 + 0.34 * len(rows)), layout="constrained")
    for y, (train, held_out) in enumerate(rows.values()):
        axis.plot([held_out.mean(), train.mean()], [y, y], color="0.7", lw=2, zorder=0)
        axis.plot(train, [y] * len(train), ".", color=BLUE, ms=4, alpha=0.6)
        axis.plot(held_out, [y] * len(held_out), "x", color=RED, ms=4, alpha=0.6)
        axis.plot(train.mean(), y, "o", color=BLUE, label="training pairs (small: seeds)" if y == 0 else None)
        axis.plot(
            held_out.mean(), y, "s", color=RED, mfc="white", label="held-out pairs (small: seeds)" if y == 0 else None
        )
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    axis.set_xlabel("share of pairs with a DPO margin above 0")
    return figure
