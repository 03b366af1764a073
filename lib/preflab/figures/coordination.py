"""Figures of notebook 04."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from preflab.figures.ablations import BLUE, FAMILY_COLOURS, FAMILY_MARKERS, RED
from preflab.judging import Place
from preflab.measured import Course

FAMILY_WORDS = {"dpo": "learns from pairs", "ppo": "learns from its samples"}
PARTS = {"positive": (BLUE, "o", "-"), "negative": (RED, "s", "--"), "trained": ("0.25", "", "-")}
MARK = 3  # half of a mark's width, in pixels
NAMED = 8  # so many points have room for their names; more of them get numbers, and a list beside the picture


def shapes(t: np.ndarray, lambdas: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]) -> Figure:
    """Schedules before anything trains, over shares of training t, (steps,).

    On the left lambda, (steps,). Then for each schedule what becomes of c = +1 and c = -1, (steps, 2).
    """
    columns = 1 + len(made)
    figure, axes = plt.subplots(1, columns, figsize=(2.5 * columns, 2.6), layout="constrained")
    for (name, share), line in zip(lambdas.items(), ("-", "--", ":", "-."), strict=False):
        axes[0].plot(t, share, line, color="0.25", label=name)
    axes[0].set_ylim(0, 1)
    axes[0].set_title("λ, share of negative learning", loc="left", size=9)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    for axis, (name, weights) in zip(axes[1:], made.items(), strict=True):
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.plot(t, weights[:, 0], color=BLUE, label="what becomes of c⁺ = +1")
        axis.plot(t, weights[:, 1], "--", color=RED, label="what becomes of c⁻ = −1")
        axis.set_title(name, loc="left", size=9)
        axis.set_ylim(-2.1, 2.1)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    figure.supxlabel("share of training, t", size=10)
    return figure


def pareto(places: Mapping[str, Place], before: tuple[float, float]) -> Figure:
    """The judge's score against KL and against diversity: chosen candidates with their names, the others small; a line
    joins those of the chosen, and the SFT model, that no other beats in both. `before` is the SFT model's score and
    diversity. A chosen one that scores far below it, its language broken, is a triangle on the lower edge."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    lowest = _axes_of_pareto(axes, places, before[0])
    names = list(places) if len(places) <= NAMED else [str(number + 1) for number in range(len(places))]
    _legends(figure, places, names)
    drawn = []
    for axis, coordinate, better, sft in ((axes[0], "kl", -1, 0.0), (axes[1], "diversity", 1, before[1])):
        ends = {name: np.column_stack([getattr(place, coordinate), place.score]) for name, place in places.items()}
        chosen = np.array([some[0] for some in ends.values() if some[0, 1] > lowest])
        _front(axis, np.array([(sft, before[0]), *chosen]), better)
        axis.plot(sft, before[0], "*", color="0.3", ms=11)
        shown = [_candidates(axis, places[name].family, some, lowest) for name, some in ends.items()]
        drawn.append([*shown, np.array([(sft, before[0])])])
    axes[0].set_xlim(left=min(-0.05, *(1.1 * place.kl.min() for place in places.values())))
    figure.canvas.draw()  # only now is it known where the points lie
    for axis, points in zip(axes, drawn, strict=True):
        _named(axis, names, [FAMILY_COLOURS[place.family] for place in places.values()], points)
    return figure


def _axes_of_pareto(axes: np.ndarray, places: Mapping[str, Place], before: float) -> float:
    """Scales, limits and labels. Returns the lowest score that is shown."""
    highest = max(place.score.max() for place in places.values())
    margin = 0.15 * max(highest - before, 0.1)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].xaxis.set_major_locator(FixedLocator([0, 0.5, *(m * 10**e for e in range(4) for m in (1, 2, 5))]))
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_xlabel("KL from the SFT model, nats a response (linear to 1)")
    axes[1].set_xlabel("entropy, nats a token")
    axes[0].set_ylabel("judge's score of sampled answers")
    axes[0].set_ylim(before - margin, max(highest, before) + margin)
    return before - margin


def _legends(figure: Figure, places: Mapping[str, Place], names: list[str]) -> None:
    """What markers mean; and beside the picture what numbers mean, if methods have them."""
    families = dict.fromkeys(place.family for place in places.values())
    marks = [(FAMILY_MARKERS[f], FAMILY_COLOURS[f], 6, FAMILY_WORDS[f]) for f in families]
    marks += [(".", "0.5", 4, "not chosen"), ("*", "0.3", 9, "SFT model")]
    handles = [plt.Line2D([], [], marker=m, color=c, ms=size, ls="", label=what) for m, c, size, what in marks]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(marks), frameon=False, fontsize=8)
    if names != list(places):
        numbered = [
            plt.Line2D([], [], marker=f"${n}$", color=FAMILY_COLOURS[place.family], ls="", ms=7, label=name)
            for n, (name, place) in zip(names, places.items(), strict=True)
        ]
        figure.legend(handles=numbered, loc="outside right center", frameon=False, fontsize=8)


def _candidates(axis: Axes, family: str, ends: np.ndarray, lowest: float) -> np.ndarray:
    """Draw the candidates of one method, (candidates, 2), the chosen one first. Returns the points that are shown."""
    (x, y), others = ends[0], ends[1:][ends[1:, 1] > lowest]
    axis.plot(*others.T, ".", color=FAMILY_COLOURS[family], ms=4, alpha=0.45)
    broken = y < lowest
    marker, size = ("v", 9) if broken else (FAMILY_MARKERS[family], 6)
    axis.plot(x, max(y, lowest), marker, color=FAMILY_COLOURS[family], ms=size, mec="white", mew=0.6, clip_on=False)
    return np.array([(x, max(y, lowest)), *others])


def _named(axis: Axes, names: list[str], colours: list[str], points: list[np.ndarray]) -> None:
    """Each name beside the first point of its own, (n, 2), where it covers no mark and no other name."""
    marks = axis.transData.transform(np.concatenate(points))[:, None] + MARK * np.array(
        [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    )
    texts = [
        axis.text(*some[0], name, color=colour, size=8)
        for name, colour, some in zip(names, colours, points, strict=False)
    ]
    adjust_text(
        texts,
        *axis.transData.inverted().transform(marks.reshape(-1, 2)).T,
        ax=axis,
        iter_lim=1000,  # and no limit of time: the same picture on every machine
        expand=(1.2, 1.6),
        force_static=(0.4, 0.6),
        force_text=(0.3, 0.6),
        arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6},
    )


def _front(axis: Axes, points: np.ndarray, better: int) -> None:
    """A line through the points, (n, 2), that no other beats in both: higher in y, and in x lower (-1) or higher."""
    x, y = points[:, 0] * better, points[:, 1]
    kept = [i for i in range(len(x)) if not np.any((x >= x[i]) & (y >= y[i]) & ((x > x[i]) | (y > y[i])))]
    kept.sort(key=lambda i: points[i, 0])
    axis.plot(*points[kept].T, color="0.75", lw=3, zorder=0)


def schedules(courses: Mapping[str, Course]) -> Figure:
    """Above what the schedule does, below the G it produces, each on its own scale; up to four side by side."""
    columns, rows = min(len(courses), 4), -(-len(courses) // 4)
    figure, axes = plt.subplots(
        2 * rows,
        columns,
        figsize=(2.7 * columns, 3.9 * rows),
        squeeze=False,
        height_ratios=(1, 1.6) * rows,
        layout="constrained",
    )
    pairs = axes.reshape(rows, 2, columns).swapaxes(1, 2).reshape(-1, 2)
    for axis in pairs[len(courses) :].flat:
        axis.remove()
    for (above, below), (name, course) in zip(pairs, courses.items(), strict=False):
        above.axhline(0.5, color="0.8", lw=0.8, zorder=0)
        for seed in course.share:
            above.plot(course.share_progress, seed, color="0.25", lw=0.8, alpha=0.6)
        above.set_title(name, loc="left", size=9)
        above.set_ylim(0, 1)
        above.sharex(below)
        above.tick_params(labelbottom=False)
        _g(below, course)
    for above, below in pairs[::columns]:
        above.set_ylabel("λ")
        below.set_ylabel("G")
    _finished(figure, below)
    return figure


def parts(courses: Mapping[str, Course]) -> Figure:
    """G of the parts of several methods, side by side, each on its own scale."""
    figure, axes = plt.subplots(1, len(courses), figsize=(2.8 * len(courses), 2.7), squeeze=False, layout="constrained")
    for axis, (name, course) in zip(axes[0], courses.items(), strict=True):
        _g(axis, course)
        axis.set_title(name, loc="left", size=9)
    axes[0, 0].set_ylabel("G")
    _finished(figure, axis)
    return figure


def _finished(figure: Figure, axis: Axes) -> None:
    """The labels that panels share; what lines mean is told above them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("share of training", size=10)


def _g(axis: Axes, course: Course) -> None:
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    for part, (colour, marker, line) in PARTS.items():
        for seed in course.g[part]:
            axis.plot(course.progress, seed, line, color=colour, lw=0.5, alpha=0.45)
        axis.plot(course.progress, course.g[part].mean(0), marker + line, color=colour, lw=1.5, ms=2.5, label=part)
