"""Figures of notebook 01."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from preflab.figures import grid
from preflab.margins import STAGES, TRANSITIONS, Outcome
from preflab.statistics import Interval

ROLES = ("trained in Stage 1", "trained in Stage 2")
COLOURS = dict(zip(ROLES, sns.color_palette("colorblind", 2), strict=True))
MARKERS = dict(zip(ROLES, "os", strict=True))
# Told apart by every kind of eye, and in grey: what is right after Stage 2 is blue, what was lost is orange.
TRANSITION_COLOURS = dict(zip(TRANSITIONS, ("#2f6ea5", "#e69f00", "#86bdea", "#e2e2e2"), strict=True))
TRANSITION_INK = dict(zip(TRANSITIONS, ("white", "black", "black", "black"), strict=True))


def outcome_map(outcomes: Mapping[tuple[str, str], tuple[str, Outcome]]) -> Figure:
    """Heat map, setting by order, of the change of the first objective's margin relative to what Stage 1
    gained. `outcomes[setting, order] = (label, outcome)`, order "A → B" or "B → A". A cell stays grey if Stage 1
    gained nothing to relate to, and if a setting does not have that order."""
    settings = list(dict.fromkeys(setting for setting, _ in outcomes))
    orders = ("A → B", "B → A")
    values = np.full((len(settings), len(orders)), np.nan)
    for (setting, order), (_, outcome) in outcomes.items():
        if outcome.verdict != "not learned":
            values[settings.index(setting), orders.index(order)] = outcome.relative.value
    figure, axis = plt.subplots(figsize=(7.6, 1.4 + 0.85 * len(settings)), layout="constrained")
    axis.set_facecolor("0.9")
    sns.heatmap(
        np.nan_to_num(values),
        ax=axis,
        mask=np.isnan(values),
        cmap="RdBu",
        norm=TwoSlopeNorm(0, -2, 2),
        linewidths=2,
        xticklabels=[f"order {order}" for order in orders],
        yticklabels=settings,
        cbar_kws={"label": "Stage-2 change / Stage-1 gain", "extend": "both", "ticks": range(-2, 3)},
    )
    for (setting, order), (label, outcome) in outcomes.items():
        row, column = settings.index(setting), orders.index(order)
        value, known = outcome.relative, not np.isnan(values[row, column])
        number = f"{value.value:+.2f}  [{value.low:+.2f}, {value.high:+.2f}]".replace("-", "−") if known else ""
        ink = "white" if known and abs(value.value) > 1.2 else "black"
        for dy, text, weight in ((0.26, label, "normal"), (0.52, outcome.verdict, "bold"), (0.78, number, "normal")):
            axis.text(column + 0.5, row + dy, text, ha="center", va="center", color=ink, weight=weight, size=8.5)
    axis.tick_params(length=0)
    axis.set_yticklabels(settings, rotation=0)
    axis.set_title("What Stage 2 did to the objective of Stage 1", loc="left", weight="bold")
    return figure


def margin_paths(panels: Mapping[str, Mapping[str, Sequence[Interval]]]) -> Figure:
    """Mean policy margin of both objectives after base, Stage 1 and Stage 2, a panel per setting and order.

    `panels[title][objective]` holds three intervals; the objective trained first comes first. If both stages trained
    one objective, there is one line.
    """
    figure, axes = grid(len(panels), width=3.1, height=2.2, sharey=True)
    for axis, (title, paths) in zip(axes.flat, panels.items(), strict=False):
        for intervals, role in zip(paths.values(), ROLES, strict=False):
            x = np.arange(3) + (0.05 if role == ROLES[1] else -0.05)
            y = np.array([i.value for i in intervals])
            error = [y - [i.low for i in intervals], [i.high for i in intervals] - y]
            axis.errorbar(x, y, error, marker=MARKERS[role], capsize=2, color=COLOURS[role], label=role)
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.set(xticks=range(3), xticklabels=STAGES, title=title)
    fullest = max(axes.flat[: len(panels)], key=lambda axis: len(axis.containers))  # has every role
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("policy margin\n(nats per token)")
    return figure


def change_distributions(changes: Mapping[str, np.ndarray]) -> Figure:
    """Distribution over held-out pairs of Stage 2's change of the policy margin, averaged over seeds, a
    violin per setting and order; a diamond marks the mean that an aggregate would report."""
    figure, axis = plt.subplots(figsize=(7.6, 0.8 + 0.5 * len(changes)), layout="constrained")
    pairs = [change.mean(0) for change in changes.values()]
    limit = float(np.quantile(np.abs(np.concatenate(pairs)), 0.995))
    for y, values in enumerate(pairs):
        clipped = np.clip(values, -limit, limit)
        sns.violinplot(x=clipped, y=y, orient="h", ax=axis, color="#b8cbe0", inner=None, cut=0, linewidth=0.6)
        low, high = np.quantile(values, [0.25, 0.75])
        axis.plot([low, high], [y, y], color="0.25", lw=3, solid_capstyle="butt")
        axis.plot(values.mean(), y, "D", color="white", mec="black", ms=5)
        against = np.mean(np.sign(values) != np.sign(values.mean()))
        axis.text(1.01, y, f"{against:.0%}", transform=axis.get_yaxis_transform(), va="center", size=9)
    axis.text(1.01, -0.6, "pairs against\nthe mean", transform=axis.get_yaxis_transform(), va="bottom", size=8)
    axis.axvline(0, color="0.4", lw=0.8)
    axis.set_yticks(range(len(changes)), changes)
    axis.set(xlabel="change of a pair's policy margin, Stage 1 → Stage 2 (nats per token)", ylabel="")
    return figure


QUARTILES_BY = {
    "own": "quartiles by the run's own Stage-1 margin",
    "independent": "quartiles by the other seeds' Stage-1 margin",
}


def quartile_changes(panels: Mapping[str, Mapping[str, Sequence[Interval]]]) -> Figure:
    """Mean change of the margin in each quartile of Stage-1 confidence, a panel per setting and order.

    `panels[title][score]` holds four intervals; scores are the run's own Stage-1 margin and, as the
    control for regression to the mean, that of the other seeds.
    """
    styles = {"own": ("o", "0.55", "--"), "independent": ("s", sns.color_palette("colorblind")[0], "-")}
    figure, axes = grid(len(panels), width=3.1, height=2.2, sharey=True)
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for score, intervals in curves.items():
            marker, colour, line = styles[score]
            x = np.arange(4) + (0.06 if score == "independent" else -0.06)
            y = np.array([i.value for i in intervals])
            error = [y - [i.low for i in intervals], [i.high for i in intervals] - y]
            axis.errorbar(x, y, error, marker=marker, color=colour, ls=line, capsize=2, label=QUARTILES_BY[score])
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.set(xticks=range(4), xticklabels=("Q1", "Q2", "Q3", "Q4"), title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("mean change\n(nats per token)")
    for axis in axes[-1]:
        axis.set_xlabel("low → high confidence")
    return figure


def transition_bars(tables: Mapping[str, Mapping[str, float]]) -> Figure:
    """What became of the first objective's pairs between Stage 1 and Stage 2, as shares of all pairs."""
    figure, axis = plt.subplots(figsize=(7.6, 0.9 + 0.36 * len(tables)), layout="constrained")
    left = np.zeros(len(tables))
    for kind in TRANSITIONS:
        shares = np.array([table[kind] for table in tables.values()])
        axis.barh(range(len(tables)), shares, left=left, color=TRANSITION_COLOURS[kind], label=kind, ec="white")
        for y, (start, share) in enumerate(zip(left, shares, strict=True)):
            if share > 0.04:
                ink = TRANSITION_INK[kind]
                axis.text(start + share / 2, y, f"{share:.0%}", ha="center", va="center", size=8, color=ink)
        left += shares
    axis.set_yticks(range(len(tables)), tables)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of held-out pairs (right: policy margin above 0)")
    axis.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    return figure
