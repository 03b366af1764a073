"""Figures of notebook 02."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

TITLES = {"dpo": "DPO", "ppo": "PPO"}
COLOURS = {
    "whole": "0.15",
    "positive": "#2a7f9e",
    "negative": "#d1495b",
    "bottom": "#a9d08e",
    "middle": "#5a9e52",
    "top": "#1c5a28",
}
STYLES = {"whole": "o-", "positive": "^-", "negative": "v--", "bottom": "v-", "middle": "o-", "top": "^-"}
WEIGHT = {"dpo": "w", "ppo": "|A|"}
HEADROOM = 0.33  # of an axis' height, for a legend that covers no curve


def six_panels(
    progress: Mapping[str, np.ndarray],
    g: Mapping[str, Mapping[str, np.ndarray]],
    noise: Mapping[str, Mapping[str, np.ndarray]],
) -> Figure:
    """G along training, DPO above PPO: whole, positive and negative, tertiles (the paper's figures 1 and 2).

    progress[method] is (steps,) in shares of training; g[method][component] and noise[...] are (seeds, steps).
    A thin line is a seed, a thick one their mean, the grey band twice the noise of the whole's measurement.
    """
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 5.6), sharex=True, sharey="row", layout="constrained")
    for row, (method, x) in zip(axes, progress.items(), strict=True):
        panels = {
            "whole": ("whole",),
            "positive and negative learning": ("positive", "negative"),
            f"tertiles of {WEIGHT[method]}": ("bottom", "middle", "top"),
        }
        band = 2 * np.sqrt((noise[method]["whole"] ** 2).mean(0))
        row[0].fill_between(x, -band, band, color="0.88", lw=0, zorder=-1, label="noise of a measurement, ±2 SE")
        for axis, (title, components) in zip(row, panels.items(), strict=True):
            axis.axhline(0, color="0.6", lw=0.8, zorder=0)
            for component in components:
                _curves(axis, x, g[method][component], COLOURS[component], STYLES[component], component)
            axis.set_title(f"{TITLES[method]}: {title}", loc="left", size=10)
        _legends_above(row)
        row[0].set_ylabel("gradient alignment G")
    for axis in axes[1]:
        _share_of_training(axis, np.concatenate(list(progress.values())))
    return figure


def common_mode(progress: Mapping[str, np.ndarray], c: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Common mode C = (G+ - G-) / 2 and its two sources, one panel a method: c[method][source] is (seeds, steps)."""
    titles = {"C": "C", "samples": "from whose samples they are", "weights": "from the weights"}
    looks = {"C": ("0.15", "o-"), "samples": ("#e08e0b", "s--"), "weights": ("#6a4c93", "^-")}
    figure, axes = plt.subplots(1, len(c), figsize=(8.5, 3.4), layout="constrained", squeeze=False)
    for axis, (method, x) in zip(axes[0], progress.items(), strict=True):
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        for source, (colour, line) in looks.items():
            _curves(axis, x, c[method][source], colour, line, titles[source])
        axis.set_title(TITLES[method], loc="left", size=10)
        _share_of_training(axis, x)
        _legends_above([axis])
    axes[0, 0].set_ylabel("(G of positive − G of negative) / 2")
    return figure


def _share_of_training(axis: Axes, x: np.ndarray) -> None:
    """An axis for checkpoints that lie evenly in the logarithm of updates, with 0 at its left end."""
    first = x[x > 0].min()
    ticks = [tick for tick in (0, 0.01, 0.03, 0.1, 0.3, 1) if tick == 0 or tick >= first]
    axis.set_xscale("symlog", linthresh=first, linscale=0.4)
    axis.set_xlim(-first / 4, 1.15)
    axis.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("share of training")


def inner_epochs(progress: np.ndarray, g: Mapping[str, np.ndarray]) -> Figure:
    """G of PPO on the same samples as each epoch on them begins: one panel a part of the loss.

    progress is (steps,); g[part] is (epochs, seeds, steps). A thin line is a seed, a thick one their mean.
    """
    figure, axes = plt.subplots(1, len(g), figsize=(10.5, 3.2), sharey=True, layout="constrained")
    for axis, (part, epochs) in zip(axes, g.items(), strict=True):
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        greys = np.linspace(0.65, 0.4, max(len(epochs) - 1, 1)).astype(str)
        styles = [("o-", COLOURS[part]), *(("s--", grey) for grey in greys)]
        for number, (curves, (line, colour)) in enumerate(zip(epochs, styles, strict=False), start=1):
            _curves(axis, progress, curves, colour, line, f"epoch {number}")
        axis.set_title(f"PPO: {part}", loc="left", size=10)
        _share_of_training(axis, progress)
    _legends_above(axes)
    axes[0].set_ylabel("gradient alignment G")
    return figure


def _curves(axis: Axes, x: np.ndarray, curves: np.ndarray, colour: str, line: str, label: str) -> None:
    """Thin lines for seeds, a thick one with markers for their mean."""
    for seed in curves:
        axis.plot(x, seed, line[1:], color=colour, lw=0.6, alpha=0.45)
    axis.plot(x, curves.mean(0), line, ms=3.5, lw=2, color=colour, label=label)


def _legends_above(row: Sequence[Axes]) -> None:
    """Legends of axes that share their y axis, in a part that no curve reaches."""
    low, high = row[0].get_ylim()
    row[0].set_ylim(low, high + HEADROOM * (high - low))
    for axis in row:
        axis.legend(frameon=False, fontsize=8, loc="upper right")


def weight_distributions(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Distributions of w (DPO, per pair) and |A| (PPO, per token) at some moments; lines are the borders of the
    tertiles. Equal weights have none.

    panels[method][moment] holds the weights.
    """
    moments = len(next(iter(panels.values())))
    figure, axes = plt.subplots(2, moments, figsize=(3.5 * moments, 4.9), sharex="row", layout="constrained")
    for row, (method, by_moment) in zip(axes, panels.items(), strict=True):
        top = max(np.quantile(values, 0.99) for values in by_moment.values()) * 1.05
        for axis, (moment, values) in zip(row, by_moment.items(), strict=True):
            sns.histplot(
                x=np.clip(values, 0, top), bins=30, binrange=(0, top), stat="density", ax=axis, color="0.75", lw=0
            )
            lower, upper = np.quantile(values, [1 / 3, 2 / 3])
            if not np.isclose(lower, upper):
                axis.axvline(lower, color=COLOURS["bottom"], lw=2, label="bottom | middle")
                axis.axvline(upper, color=COLOURS["top"], lw=2, ls="--", label="middle | top")
            unit = "a pair" if method == "dpo" else "a token"
            axis.set_title(f"{TITLES[method]}, {moment}", loc="left", size=10)
            axis.set(xlabel=f"{WEIGHT[method]} of {unit}", ylabel="", yticks=[])
    figure.legend(*axes[-1, -1].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
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
            axis.set_xticks(range(0, len(x), every), [f"{share:.0%}" for share in x[::every]])
            axis.set_yticks(range(len(places)), places)
            axis.set_title(f"{TITLES[method]}: {component}", loc="left", size=10)
        figure.colorbar(image, ax=row, label=f"G of {TITLES[method]}", pad=0.01)
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
            aspect="equal",
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
        axis.plot(x, curves.mean(0), lw=1.8, color=COLOURS["positive"])
        axis.set_title(title, loc="left", size=9.5)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel("share of training")
    return figure


def token_picture(rows: Sequence[Mapping], width: int = 138) -> Figure:
    """Texts with every response token coloured by its pull, -c * s: blue raises the likelihood of D'.

    Each row has `label`, `prompt`, `tokens` and `pull`, a share of the largest pull; the colours end where 3 % of the
    tokens lie beyond. Long texts are broken into lines of at most `width` characters.
    """
    limit = float(np.quantile(np.abs(np.concatenate([row["pull"] for row in rows])), 0.97)) or 1.0
    colour = plt.get_cmap("RdBu")
    norm = Normalize(-limit, limit)
    lines = [line for row in rows for line in _lines(row, width)]
    columns = max(x + len(text) for line in lines for x, text, _ in line)
    figure, axis = plt.subplots(figsize=(10.5 * max(columns, 90) / 138, 0.27 * len(lines) + 0.8), layout="constrained")
    axis.set(xlim=(0, max(columns, 90)), ylim=(len(lines), 0))
    axis.axis("off")
    for y, line in enumerate(lines):
        for x, text, pull in line:
            box, ink = None, "0.35"
            if pull is not None:
                box = {"facecolor": colour(norm(pull)), "lw": 0, "boxstyle": "square,pad=0.12"}
                ink = "white" if abs(norm(pull) - 0.5) > 0.33 else "black"
            how = {"family": "monospace", "size": 8.5, "va": "center", "parse_math": False}  # a $ in a text is a $
            axis.text(x, y + 0.5, text, color=ink, bbox=box, **how)
    scale = plt.cm.ScalarMappable(norm, colour)
    bar = figure.colorbar(scale, ax=axis, orientation="horizontal", aspect=50, pad=0.01, extend="both")
    bar.set_label("pull −c·s, as a share of the method's largest: towards D' (blue), away from it (red)", size=9)
    return figure


def _lines(row: Mapping, width: int) -> list[list[tuple[float, str, float | None]]]:
    """A row as lines of (column, text, pull); label and prompt have no pull, and stand in one line."""
    prompt = " ".join(f"{row['label']}  {row['prompt']}".split("\n"))
    lines = [[(0.0, prompt if len(prompt) <= width else f"{prompt[: width - 2]} …", None)], []]
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
    axis.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0, label="perfect")
    for label, (predicted, true) in curves.items():
        axis.plot(predicted, true, "o-", ms=4, label=label)
    axis.set(xlabel="reward's probability", ylabel="the world's probability", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(frameon=False, loc="upper left")
    return figure
