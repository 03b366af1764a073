"""Figures of notebook 09."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preflab.common_mode import Panel
from preflab.figures.dynamics import TITLES

LOOKS = {  # source of C: words, colour
    "weights": ("from the weights", "#6a4c93"),
    "samples": ("from whose samples they are", "#e08e0b"),
    "ratio": ("from PPO's ratio and clip", "#86bdea"),
}


def by_knob(rows: Mapping[str, Mapping[str, tuple[Sequence[str], Panel]]]) -> Figure:
    """C and its sources on samples of many samplers: a row each method, a column each knob.

    rows[method][knob] is what stands below each bar, and what was measured, (seeds, bars) each. A method may lack a
    knob. Bars are means over seeds and start at 0, those of one sign on top of each other; dots are C of each seed.
    """
    columns = list(dict.fromkeys(knob for row in rows.values() for knob in row))
    most = max(len(labels) for row in rows.values() for labels, _ in row.values())
    shape = {"figsize": (2.9 * len(columns) + 0.6, 3.0 * len(rows) + 0.5), "sharey": "row", "squeeze": False}
    figure, axes = plt.subplots(len(rows), len(columns), layout="constrained", **shape)
    for line, (method, row) in zip(axes, rows.items(), strict=True):
        for axis, knob in zip(line, columns, strict=True):
            if knob not in row:
                axis.set_axis_off()
                continue
            labels, panel = row[knob]
            _bars(axis, labels, panel)
            axis.set_xlim(-0.6, most - 0.4)  # bars of one width everywhere
            axis.margins(y=0.1)
            axis.set_title(f"{TITLES[method]}: {knob}", loc="left", size=10)
        line[0].set_ylabel("C = (G of positive − G of negative) / 2", size=8.5)
    handles, words = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _bars(axis: Axes, labels: Sequence[str], panel: Panel) -> None:
    x = np.arange(len(labels))
    above, below = np.zeros(len(x)), np.zeros(len(x))
    for name, (words, colour) in LOOKS.items():
        height = panel[name].mean(0)
        axis.bar(x, height, 0.62, np.where(height > 0, above, below), color=colour, lw=0, alpha=0.85, label=words)
        above, below = above + height.clip(min=0), below + height.clip(max=0)
    axis.axhline(0, color="0.4", lw=0.8)
    axis.plot(x, panel["expected"].mean(0), "D", ms=5, mfc="none", mec="#8a4f00", label="samples part, expected")
    middle = panel["C"].mean(0)
    axis.errorbar(x, middle, [middle - panel["low"], panel["high"] - middle], fmt="_", color="0.1", ms=13, label="C")
    spread = np.linspace(-0.12, 0.12, len(panel["C"])) if len(panel["C"]) > 1 else [0.0]
    for shift, seed in zip(spread, panel["C"], strict=True):
        axis.plot(x + shift, seed, "o", ms=2.6, color="0.1", label="C of a seed" if shift == spread[0] else None)
    axis.set_xticks(x, labels, size=7.5)


def against_distance(points: Mapping[str, Mapping[str, Panel]]) -> Figure:
    """The samples part against KL(q || pi): points[method][knob]. Lines join what is expected, in the order of the
    knob; points are measured, with twice their standard error."""
    figure, axes = plt.subplots(1, len(points), figsize=(4.6 * len(points), 3.6), layout="constrained", squeeze=False)
    for axis, (method, by_knob_) in zip(axes[0], points.items(), strict=True):
        axis.axhline(0, color="0.4", lw=0.8)
        for (knob, panel), marker, colour in zip(by_knob_.items(), "osv^", ("C0", "C1", "C2", "C3"), strict=False):
            kl, value, expected = (panel[name].mean(0) for name in ("kl", "samples", "expected"))
            error = np.sqrt((panel["error samples"] ** 2).sum(0)) / len(panel["kl"])
            axis.plot(kl, expected, "-", lw=1, color=colour)
            axis.errorbar(kl, value, 2 * error, fmt=marker, ms=5, lw=1, color=colour, label=knob)
        axis.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
        axis.set_xlim(left=-2e-4)
        axis.set(title=TITLES[method], xlabel="KL(q ‖ π), nats a token")
        axis.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("samples part of C")
    return figure
