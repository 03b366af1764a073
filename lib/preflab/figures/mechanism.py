"""Figures of notebook 05."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from preflab.figures import grid
from preflab.geometry import known_mean

COLOURS = sns.color_palette("colorblind")
LINES = {  # of `cosines`: colour, style, width
    "true gradients (disattenuated)": (COLOURS[0], "-", 2.2),
    "full data": (COLOURS[2], "-", 1.2),
    "single batches": (COLOURS[1], "-.", 1.2),
    "shuffled labels": ("0.5", "--", 1.2),
    "the same objective, new pairs": (COLOURS[4], ":", 1.6),
    "ceiling: two halves": ("0.25", ":", 1.0),
}


def cosines(steps: np.ndarray, panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Cosines along Stage 2, a panel for each setting and order. `panels[title][line]` is (seeds, points): thin lines
    are single seeds of the first kind, and thick ones means."""
    figure, axes = grid(len(panels), width=3.4, height=2.5, sharey=True)
    x = np.arange(len(steps))
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, values in lines.items():
            colour, style, width = LINES[name]
            axis.plot(x, known_mean(values, 0), style, color=colour, lw=width, label=name)
            if name == next(iter(LINES)):
                axis.plot(x, values.T, color=colour, lw=0.6, alpha=0.5)
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.set_title(title.replace(": ", "\n"))
        axis.set(ylim=(-1.05, 1.05), xticks=x, xticklabels=steps)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine")
    figure.supxlabel("updates of Stage 2", size=10)
    return figure


def place_map(places: Sequence[tuple[str, str]], found: Mapping[str, np.ndarray]) -> Figure:
    """Heat map of the disattenuated cosine, layer by projection, a panel for each sequence: `found[title]` is
    (places,). Grey: the gradient there is lost in noise."""
    layers, projections = (list(dict.fromkeys(p[i] for p in places if p[0])) for i in (0, 1))
    figure, axes = grid(len(found), width=3.6, height=0.9 + 0.45 * len(layers), sharey=True)
    for axis, (title, values) in zip(axes.flat, found.items(), strict=False):
        table = np.full((len(layers), len(projections)), np.nan)
        for (layer, projection), value in zip(places, values, strict=True):
            if layer:
                table[layers.index(layer), projections.index(projection)] = value
        axis.set_facecolor("0.85")
        sns.heatmap(
            table, ax=axis, mask=np.isnan(table), cmap="RdBu", norm=TwoSlopeNorm(0, -1, 1), annot=True, fmt=".2f",
            annot_kws={"size": 7.5}, xticklabels=projections, yticklabels=layers, linewidths=1, cbar=False,
        )  # fmt: skip
        axis.set_title(title.replace(": ", "\n"))
        axis.tick_params(length=0)
        axis.set_xticklabels(projections, rotation=20, ha="right", size=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    figure.supxlabel("cosine of the true gradients of both objectives", size=10)
    return figure


def gauges(product: float, factors: np.ndarray) -> Figure:
    """The cosine of raw (A, B) under random changes of gauge, beside that of the product, which none of them moves."""
    figure, axis = plt.subplots(figsize=(5.6, 2.4), layout="constrained")
    axis.hist(factors, bins=25, color=COLOURS[1], alpha=0.8, label="cosine of raw (A, B), a gauge each")
    axis.axvline(product, color=COLOURS[0], lw=2.2, label="cosine of ΔW, in every gauge")
    axis.set(xlabel="cosine of the moves of Stage 1 and Stage 2", ylabel="gauges", xlim=(-1, 1))
    axis.legend(frameon=False, fontsize=8.5)
    return figure


def updates(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> Figure:
    """Cosines of both stages' updates, a line for each sequence: `rows[title][column]`."""
    figure, axis = plt.subplots(figsize=(6.6, 0.9 + 0.34 * len(rows)), layout="constrained")
    shifts = np.linspace(-0.15, 0.15, len(columns))
    for column, shift, marker, colour in zip(columns, shifts, "os^D", COLOURS, strict=False):
        values = [row.get(column, np.nan) for row in rows.values()]
        axis.plot(values, np.arange(len(rows)) + shift, marker, color=colour, label=column, ms=6)
    axis.axvline(0, color="0.6", lw=0.8)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set(xlim=(-1, 1), xticks=np.linspace(-1, 1, 5), xlabel="cosine")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8.5)
    return figure


def forecasts(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], scaled: Sequence[str]) -> Figure:
    """What happened to every held-out pair against its forecast: a row for each sequence, a column for each forecast.

    `panels[title][forecast]` holds forecast and change, (pairs,) each. A forecast that is not in `scaled` has no size
    of its own, so the line of equal values is drawn for the others alone."""
    kinds = list(next(iter(panels.values())))
    figure, axes = plt.subplots(
        len(panels), len(kinds), figsize=(3.1 * len(kinds), 2.1 * len(panels)), squeeze=False, layout="constrained"
    )
    for row, (title, some) in zip(axes, panels.items(), strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            x, y = some[kind]
            axis.axhline(0, color="0.85", lw=0.8, zorder=0)
            axis.axvline(0, color="0.85", lw=0.8, zorder=0)
            axis.scatter(x, y, s=6, color=COLOURS[0], alpha=0.5, lw=0)
            if kind in scaled:
                ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
                axis.plot(ends, ends, color="0.4", lw=0.8)
            axis.tick_params(labelsize=7.5)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        row[0].set_ylabel(title.replace(": ", "\n").replace(" → ", "\n→ "), size=8.5)
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title(kind, size=9)
    figure.supxlabel("forecast of a pair's change (nats per token; on the right in any unit)", size=9)
    figure.supylabel("measured change", size=9)
    return figure


def opposition_and_loss(points: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """What was lost against the disattenuated cosine early in Stage 2: a colour for each sequence, a dot for each seed.

    `points[title]` holds cosines and added losses, (seeds,) each."""
    figure, axis = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
    for i, (title, (x, y)) in enumerate(points.items()):
        axis.plot(x, y, "os^DvP*X"[i % 8], color=COLOURS[i % len(COLOURS)], label=title, ms=6)
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    axis.axvline(0, color="0.7", lw=0.8, zorder=0)
    axis.set(
        xlabel="cosine of both true gradients, early in Stage 2", ylabel="added held-out loss\nof the first objective"
    )
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
