"""Figures of notebook 07."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from preflab.dyads import names_of
from preflab.statistics import Interval

COLOURS = sns.color_palette("colorblind")


def gains(found: Mapping[str, Interval], taught: list[str]) -> Figure:
    """What each objective gains by its own stage, nats per token; hollow where it does not count as learnt."""
    figure, axis = plt.subplots(figsize=(5.6, 0.9 + 0.27 * len(found)), layout="constrained")
    for y, (title, gain) in enumerate(found.items()):
        error = [[gain.value - gain.low], [gain.high - gain.value]]
        fill = COLOURS[0] if title in taught else "white"
        axis.errorbar(gain.value, y, xerr=error, fmt="o", color=COLOURS[0], mfc=fill, capsize=2, ms=5)
    axis.axvline(0, color="0.6", lw=0.8, zorder=0)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel("gain of the policy margin by the own stage, nats a token")
    return figure


def matrices(rows: pd.DataFrame, columns: Mapping[str, tuple[str, float]]) -> Figure:
    """A heat map of each column of `rows` (title: column, end of the colours): the own objective from top to bottom,
    the other one from left to right. Objectives with a high cosine stand side by side."""
    names = side_by_side(rows)
    side = 1.1 + 0.36 * len(names)
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(side * len(columns) + 1.2, side + 0.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, (column, end)) in zip(axes[0], columns.items(), strict=True):
        table = rows.pivot_table(index="own", columns="other", values=column, dropna=False)
        table = table.reindex(index=names, columns=names).round(1) + 0.0  # no −0.0
        axis.set_facecolor("0.85")
        sns.heatmap(
            table, ax=axis, mask=table.isna(), cmap="RdBu", norm=TwoSlopeNorm(0, -end, end), annot=True, fmt="+.1f",
            annot_kws={"size": 7.5}, linewidths=1, square=True,
            cbar_kws={"shrink": 0.6, "extend": "both", "label": title},
        )  # fmt: skip
        axis.set(title=title, xlabel="the other objective", ylabel="the own objective" if axis is axes[0, 0] else "")
        axis.tick_params(length=0)
        axis.tick_params(axis="x", rotation=60)
        axis.tick_params(axis="y", rotation=0)
        plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    return figure


def side_by_side(rows: pd.DataFrame) -> list[str]:
    """The objectives in the order of the leaves of a tree (average linkage of 1 - cosine, optimal leaf order); as they
    come where a cosine is not known."""
    names = names_of(rows)
    cosines = rows.pivot_table(index="own", columns="other", values="cosine").reindex(index=names, columns=names)
    apart = 1 - cosines.to_numpy().clip(-1, 1)
    np.fill_diagonal(apart, 0)
    if len(names) < 3 or np.isnan(apart).any():
        return names
    tree = linkage(squareform((apart + apart.T) / 2), "average", optimal_ordering=True)
    return [names[i] for i in leaves_list(tree)]


def forecasts(rows: pd.DataFrame, measures: Mapping[str, str], found: Mapping[str, Interval]) -> Figure:
    """What each cheap measure (title: column) says, against what Stage 2 did: a mark an ordered pair, a colour and a
    shape an own objective. `found` has the rank correlations by title. The dotted line is where a first stage leaves
    nothing behind: share = transfer - 1."""
    figure, axes = plt.subplots(
        1, len(measures), figsize=(3.1 * len(measures) + 1.6, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    names, shapes = list(dict.fromkeys(rows.own)), "osD^vPX"
    for axis, (title, column) in zip(axes[0], measures.items(), strict=True):
        for i, name in enumerate(names):
            some = rows[rows.own == name]
            how = {"color": COLOURS[i % len(COLOURS)], "marker": shapes[i % len(shapes)]}
            axis.scatter(some[column], some.share, s=20, ec="white", lw=0.4, label=name, **how)
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.axvline(0.5 if column == "agreement" else 0, color="0.7", lw=0.8, zorder=0)
        if column == "transfer":
            axis.axline((0, -1), slope=1, color="0.5", lw=0.9, ls=":", zorder=0)
        axis.set_xlabel(title)
        rank, n = found[title].value, rows[column].notna().sum()
        axis.set_title(f"{n} ordered pairs, rank correlation {rank:+.2f}" if np.isfinite(rank) else "", size=9)
    axes[0, 0].set_ylabel("Stage-2 change / Stage-1 gain")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center", title="own objective")
    return figure


def orders(rows: pd.DataFrame) -> Figure:
    """What an objective has from coming last, against what it loses by coming first: a mark an ordered pair."""
    figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    sns.stripplot(rows, x="order", y="own", color="0.6", size=4, jitter=False, ax=axis, zorder=1)
    means = rows.groupby("own", sort=False).order.mean()
    axis.plot(means, np.arange(len(means)), "D", color=COLOURS[0], ms=5, label="mean", zorder=2)
    axis.axvline(0, color="0.6", lw=0.8, zorder=0)
    axis.set(xlabel="last less first, share of the own gain", ylabel="")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return figure
