"""Figures of notebook 02."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

TITLES = {"dpo": "DPO", "ppo": "PPO"}
COLOURS = {
    "whole": "0.15",
    "positive": "#2a7f9e",
    "negative": "#d1495b",
    "bottom": "#bfdcae",
    "middle": "#6cab63",
    "top": "#22662d",
}
PANELS = {"whole": ("whole",), "positive and negative learning": ("positive", "negative"), "tertiles": ()}
WEIGHT = {"dpo": "w", "ppo": "|A|"}


def six_panels(
    progress: Mapping[str, np.ndarray],
    g: Mapping[str, Mapping[str, np.ndarray]],
    noise: Mapping[str, Mapping[str, np.ndarray]],
) -> Figure:
    """G along training, DPO above PPO: whole, positive and negative, tertiles (the paper's figures 1 and 2).

    progress[method] is (steps,) in shares of training; g[method][component] and noise[...] are (seeds, steps).
    A thin line is a seed, a thick one their mean, the grey band twice the noise of the whole's measurement.
    """
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 5.4), sharex=True, sharey="row", layout="constrained")
    for row, (method, x) in zip(axes, progress.items(), strict=True):
        band = 2 * np.sqrt((noise[method]["whole"] ** 2).mean(0))
        panels = {**PANELS, f"tertiles of {WEIGHT[method]}": ("bottom", "middle", "top")}
        del panels["tertiles"]
        for axis, (title, components) in zip(row, panels.items(), strict=True):
            axis.axhline(0, color="0.6", lw=0.8, zorder=0)
            if components == ("whole",):
                axis.fill_between(x, -band, band, color="0.88", lw=0, zorder=-1, label="noise of a measurement, ±2 SE")
            for component in components:
                for seed in g[method][component]:
                    axis.plot(x, seed, color=COLOURS[component], lw=0.6, alpha=0.45)
                mean = g[method][component].mean(0)
                axis.plot(x, mean, "o-", ms=3, lw=2, color=COLOURS[component], label=component)
            axis.set_title(f"{TITLES[method]}: {title}", loc="left", size=10)
            axis.legend(frameon=False, fontsize=8)
        row[0].set_ylabel("gradient alignment G")
    for axis in axes[1]:
        axis.set_xlabel("share of training")
    return figure


def inner_epochs(progress: np.ndarray, fresh: Mapping[str, np.ndarray], stale: Mapping[str, np.ndarray]) -> Figure:
    """G of PPO on the same samples as their first and as their last epoch begins.

    progress is (steps,); fresh[part] and stale[part] are (seeds, steps). A thin line is a seed, a thick one their mean.
    """
    figure, axes = plt.subplots(1, len(fresh), figsize=(3.5 * len(fresh), 2.8), sharey=True, layout="constrained")
    for axis, part in zip(axes, fresh, strict=True):
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        for curves, line, label in ((fresh, "o-", "first epoch"), (stale, "s--", "last epoch")):
            colour = COLOURS[part] if line == "o-" else "0.55"
            for seed in curves[part]:
                axis.plot(progress, seed, line[1:], color=colour, lw=0.6, alpha=0.45)
            axis.plot(progress, curves[part].mean(0), line, ms=3, lw=2, color=colour, label=label)
        axis.set_title(f"PPO: {part}", loc="left", size=10)
        axis.set_xlabel("share of training")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("gradient alignment G")
    return figure


def weight_distributions(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Distributions of w (DPO, per pair) and |A| (PPO, per token) at some moments; lines are the tertile borders.

    panels[method][moment] holds the weights.
    """
    moments = len(next(iter(panels.values())))
    figure, axes = plt.subplots(2, moments, figsize=(3.5 * moments, 4.6), sharex="row", layout="constrained")
    for row, (method, by_moment) in zip(axes, panels.items(), strict=True):
        top = max(np.quantile(values, 0.99) for values in by_moment.values()) * 1.05
        for axis, (moment, values) in zip(row, by_moment.items(), strict=True):
            sns.histplot(
                x=np.clip(values, 0, top), bins=30, binrange=(0, top), stat="density", ax=axis, color="0.75", lw=0
            )
            for border, colour in zip(np.quantile(values, [1 / 3, 2 / 3]), ("bottom", "top"), strict=True):
                axis.axvline(border, color=COLOURS[colour], lw=1.6)
            unit = "a pair" if method == "dpo" else "a token"
            axis.set(title=f"{TITLES[method]}, {moment}", xlabel=f"{WEIGHT[method]} of {unit}", ylabel="")
            axis.set_yticks([])
    return figure


def layer_map(
    places: Sequence[str], progress: Mapping[str, np.ndarray], g: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """G by place in the network and share of training: g[method][component] is (places, steps).

    Each method has its own colour scale, centred at 0.
    """
    components = ("whole", "positive", "negative")
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 4.6), layout="constrained", sharey=True)
    for row, (method, x) in zip(axes, progress.items(), strict=True):
        limit = max(np.abs(g[method][c]).max() for c in components)
        for axis, component in zip(row, components, strict=True):
            image = axis.imshow(
                g[method][component],
                cmap="RdBu",
                norm=TwoSlopeNorm(0, -limit, limit),
                aspect="auto",
                interpolation="none",
            )
            every = max(1, (len(x) - 1) // 4)
            axis.set_xticks(range(0, len(x), every), [f"{share:.1f}" for share in x[::every]])
            axis.set_yticks(range(len(places)), places)
            axis.set_title(f"{TITLES[method]}: {component}", loc="left", size=10)
        figure.colorbar(image, ax=row, label="G", pad=0.01)
    for axis in axes[1]:
        axis.set_xlabel("share of training")
    return figure


def first_order(predicted: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray]) -> Figure:
    """What v predicts of Adam's real step, against what the step did to the NLL of D'; arrays of any shape."""
    figure, axes = plt.subplots(1, len(predicted), figsize=(4.2 * len(predicted), 3.7), layout="constrained")
    for axis, (method, x) in zip(np.atleast_1d(axes), predicted.items(), strict=True):
        y = changed[method]
        limit = 1.1 * float(np.nanmax(np.abs([x, y])))
        axis.plot([-limit, limit], [-limit, limit], color="0.7", lw=1, zorder=0)
        axis.plot(np.ravel(x), np.ravel(y), "o", ms=4, alpha=0.6, mew=0)
        axis.set(
            title=TITLES[method],
            xlabel="predicted: v · (Adam's step)",
            ylabel="measured change of the NLL of D'",
            xlim=(-limit, limit),
            ylim=(-limit, limit),
        )
    return figure


def training_curves(panels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """What was logged: panels[title] = (progress, (seeds, steps)); thin lines are seeds."""
    columns = 4
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.7 * columns, 2.1 * rows), layout="constrained", squeeze=False)
    for axis, (title, (x, curves)) in zip(axes.flat, panels.items(), strict=False):
        for seed in curves:
            axis.plot(x, seed, lw=0.6, color="0.6")
        axis.plot(x, curves.mean(0), lw=1.8, color="#2a7f9e")
        axis.set_title(title, loc="left", size=9.5)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel("share of training")
    return figure


def token_picture(rows: Sequence[Mapping], width: int = 138) -> Figure:
    """Texts with every response token coloured by its pull, -c * s: blue raises the likelihood of D'.

    Each row has `label`, `prompt`, `tokens` and `pull`; long texts are broken into lines of `width` characters,
    as many as fit the figure.
    """
    limit = float(np.quantile(np.abs(np.concatenate([row["pull"] for row in rows])), 0.97)) or 1.0
    colour = plt.get_cmap("RdBu")
    norm = Normalize(-limit, limit)
    lines = [line for row in rows for line in _lines(row, width)]
    figure, axis = plt.subplots(figsize=(10.5, 0.27 * len(lines) + 0.75), layout="constrained")
    axis.set(xlim=(0, width), ylim=(len(lines), 0))
    axis.axis("off")
    for y, line in enumerate(lines):
        for x, text, pull in line:
            box = None
            if pull is not None:
                box = {"facecolor": colour(norm(pull)), "lw": 0, "boxstyle": "square,pad=0.12"}
            ink = (
                "white"
                if pull is not None and abs(norm(pull) - 0.5) > 0.33
                else "black"
                if pull is not None
                else "0.35"
            )
            axis.text(x, y + 0.5, text, family="monospace", size=8.5, va="center", color=ink, bbox=box)
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, colour), ax=axis, orientation="horizontal", aspect=60, pad=0.01)
    bar.set_label("pull of the token, −c · s: towards (blue) or away from (red) the final responses", size=9)
    return figure


def _lines(row: Mapping, width: int) -> list[list[tuple[float, str, float | None]]]:
    """A row as lines of (column, text, pull); label and prompt have no pull."""
    lines = [[(0.0, f"{row['label']}  {row['prompt']}", None)], []]
    column = 4
    for token, pull in zip(row["tokens"], row["pull"], strict=True):
        text = token.replace("Ġ", " ").strip() or token
        if column + len(text) > width:
            lines.append([])
            column = 4
        lines[-1].append((column, text, pull))
        column += len(text) + 1
    return lines


def calibration(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Predicted against true probability that the first response is labelled better."""
    figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
    for label, (predicted, true) in curves.items():
        axis.plot(predicted, true, "o-", ms=4, label=label)
    axis.set(xlabel="reward model's probability", ylabel="the world's probability", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False)
    return figure
