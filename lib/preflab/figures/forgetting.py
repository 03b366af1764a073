"""Figures of notebook 06."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from preflab.statistics import Interval

COLOURS = sns.color_palette("colorblind")


def maps(rows: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Heat maps of columns of `rows` (title: column), each the mean over the worlds of a cell: compatibility from left
    to right, the strengths of both objectives from top to bottom. A cell stays grey where Stage 1 taught nothing."""
    strengths = zip(rows.strength, rows.other_strength, strict=True)
    names = [f"own {own:.2f}, other {other:.2f}" for own, other in strengths]
    cells = rows.assign(cell=names, compatibility=rows.compatibility.round(1) + 0.0)  # no −0.0
    height = 1.5 + 0.42 * cells.cell.nunique()
    figure, axes = plt.subplots(
        1, len(columns), figsize=(3.6 * len(columns) + 1.2, height), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, column) in zip(axes[0], columns.items(), strict=True):
        table = cells.pivot_table(index="cell", columns="compatibility", values=column).sort_index(ascending=False)
        table = table.round(1) + 0.0
        axis.set_facecolor("0.85")
        sns.heatmap(
            table, ax=axis, mask=table.isna(), cmap="RdBu", norm=TwoSlopeNorm(0, -1.5, 1.5), annot=True, fmt="+.1f",
            annot_kws={"size": 8}, linewidths=1, cbar=axis is axes[0, -1],
            cbar_kws={"label": "share of the gain", "extend": "both"},
        )  # fmt: skip
        axis.set(title=title, xlabel="compatibility", ylabel="strength of the labels" if axis is axes[0, 0] else "")
        axis.tick_params(length=0)
        axis.tick_params(axis="y", rotation=0)
    return figure


def slopes(rows: pd.DataFrame, lines: Mapping[str, np.ndarray], x: np.ndarray, crossing: Interval) -> Figure:
    """Every objective of every world, and the fitted mean for each `line` at compatibilities `x`: (3, x), value, low
    and high. The band is where the fitted mean is zero."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for colour, (label, (value, low, high)) in zip(COLOURS, lines.items(), strict=False):
        axis.plot(x, value, color=colour, lw=2, label=label)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axis.scatter(rows.compatibility, rows.share, s=16, color="0.35", zorder=3, label="an objective of a world")
    axis.axhline(0, color="0.6", lw=0.8)
    if np.isfinite([crossing.low, crossing.high]).all():
        axis.axvspan(crossing.low, crossing.high, color=COLOURS[2], alpha=0.15, lw=0, label="forgetting turns (95 %)")
    axis.set(xlabel="compatibility of the objectives", ylabel="Stage-2 change / Stage-1 gain")
    axis.set_xlim(x[0] - 0.1, x[-1] + 0.1)  # the band may leave the grid
    axis.legend(frameon=False, fontsize=8.5)
    return figure


def kept(panels: Mapping[str, Mapping[str, tuple[Interval, Interval]]]) -> Figure:
    """What controls leave of the first objective against what they teach of the second, shares of the gain of each
    alone: a panel a world, `panels[title][control] = (first, second)`. Axes are linear to 1 and logarithmic beyond,
    because some methods move margins ten times as far as others."""
    names = list(next(iter(panels.values())))
    figure, axes = plt.subplots(
        1, 2 * len(panels), figsize=(3.0 * len(panels) * 1.7, 0.9 + 0.27 * len(names)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    y = np.arange(len(names))
    for number, (title, rows) in enumerate(panels.items()):
        for side, (axis, what) in enumerate(
            zip(axes[0, 2 * number :], ("first: kept", "second: learnt"), strict=False)
        ):
            found = [rows[name][side] for name in names]
            value = np.array([i.value for i in found])
            error = [value - [i.low for i in found], [i.high for i in found] - value]
            axis.errorbar(value, y, xerr=error, fmt="os"[side], color=COLOURS[side], capsize=2, ms=4)
            axis.axvline(value[0], color="0.7", lw=0.8, ls=":", zorder=0)
            axis.axvline(0, color="0.4", lw=0.8, zorder=0)
            axis.set_xscale("symlog", linthresh=1, linscale=0.8)
            axis.set_xticks(_ticks(*axis.get_xlim()))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_title(f"{title}\n{what}", size=9)
    axes[0, 0].set_yticks(y, names)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("share of what the objective gains alone", size=10)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """−1, 0 and 1, and on either side the largest of 3 and 10 that the axis holds; both would stand too close."""
    ends = [next((side * x for x in (10, 3) if low <= side * x <= high), 0) for side in (-1, 1)]
    return sorted({0, *ends, *(x for x in (-1, 1) if low <= x <= high)})


def forecasts(rows: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """What each cheap measure (title: column) says, against what Stage 2 did: a dot an objective of a world."""
    figure, axes = plt.subplots(
        1, len(measures), figsize=(2.7 * len(measures), 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, column) in zip(axes[0], measures.items(), strict=True):
        dots = axis.scatter(
            rows[column], rows.share, s=16, c=rows.compatibility, cmap="RdBu", vmin=-1, vmax=1, ec="0.4", lw=0.4
        )
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.axvline(0, color="0.7", lw=0.8, zorder=0)
        axis.set_title(title, size=9)
    axes[0, 0].set_ylabel("Stage-2 change / Stage-1 gain")
    figure.colorbar(dots, ax=axes, label="compatibility", pad=0.01)
    return figure


def chosen_orders(found: pd.DataFrame, names: Sequence[str]) -> Figure:
    """What both orders end with in every world, the chosen one filled: mean of both objectives, a share of gains."""
    figure, axis = plt.subplots(figsize=(6.4, 0.8 + 0.24 * len(found)), layout="constrained")
    for y, (_, row) in enumerate(found.iterrows()):
        axis.plot([row[name] for name in names], [y, y], color="0.8", lw=1.5, zorder=0)
        for name, marker in zip(names, "os", strict=True):
            fill = COLOURS[0] if row.chosen == name else "white"
            axis.plot(row[name], y, marker, color=COLOURS[0], mfc=fill, ms=5, label=name if y == 0 else None)
    axis.set_yticks(range(len(found)), found.index, size=8)
    axis.invert_yaxis()
    axis.set_xlabel("what is left at the end, mean of both objectives (share of the gain of each alone)")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
    return figure
