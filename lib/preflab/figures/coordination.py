"""Figures of notebook 04."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from preflab.figures.ablations import FAMILY_COLOURS

PART_COLOURS = {"positive": "#2a7f9e", "negative": "#d1495b", "trained": "0.25"}


@dataclass(frozen=True)
class Place:
    """Where a method's candidates ended, the chosen one first; each array is (candidates,)."""

    family: str  # dpo (learns from pairs) or ppo (from its samples)
    score: np.ndarray
    kl: np.ndarray
    diversity: np.ndarray


def pareto(places: Mapping[str, Place], before: tuple[float, float]) -> Figure:
    """The judge's score against KL and against diversity: chosen candidates numbered, the others small; a line joins
    those of the chosen, and the SFT model, that no other beats in both. `before` is the SFT model's score and
    diversity. A chosen one that scores far below it, its language broken, is a triangle on the lower edge."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    highest = max(place.score.max() for place in places.values())
    margin = 0.15 * max(highest - before[0], 0.1)
    lowest = before[0] - margin
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].xaxis.set_major_locator(FixedLocator([0, 0.5, *(m * 10**e for e in range(4) for m in (1, 2, 5))]))
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_xlabel("KL from the SFT model, nats a response (linear to 1)")
    axes[1].set_xlabel("entropy, nats a token")
    axes[0].set_ylabel("judge's score of sampled answers")
    axes[0].set_ylim(lowest, max(highest, before[0]) + margin)
    handles = [
        plt.Line2D([], [], marker=f"${number}$", color=FAMILY_COLOURS[place.family], ls="", ms=7, label=name)
        for number, (name, place) in enumerate(places.items(), 1)
    ]
    handles.append(plt.Line2D([], [], marker="*", color="0.3", ls="", ms=9, label="SFT"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    for axis, name, better, sft in ((axes[0], "kl", -1, 0.0), (axes[1], "diversity", 1, before[1])):
        chosen = np.array([[getattr(place, name)[0], place.score[0]] for place in places.values()])
        _front(axis, np.array([(sft, before[0]), *chosen[chosen[:, 1] > lowest]]), better)
        axis.plot(sft, before[0], "*", color="0.3", ms=11)
        for place in places.values():
            x, y = getattr(place, name)[1:], place.score[1:]
            axis.plot(x[y > lowest], y[y > lowest], ".", color=FAMILY_COLOURS[place.family], ms=4, alpha=0.45)
        _numbered(axis, chosen, [FAMILY_COLOURS[place.family] for place in places.values()], lowest)
    axes[0].set_xlim(left=min(-0.05, *(1.1 * place.kl.min() for place in places.values())))
    return figure


def _numbered(axis: Axes, points: np.ndarray, colours: Sequence[str], lowest: float) -> None:
    """Crosses at the points, (n, 2), each with its number in a disc that stands aside where there is no room."""
    markers = np.where(points[:, 1] < lowest, "v", "o")
    points = np.column_stack([points[:, 0], np.maximum(points[:, 1], lowest)])
    axis.scatter(*points.T, c=colours, s=14, marker="x", lw=0.9)
    axis.figure.canvas.draw()  # only now is it known where the points lie
    inches = axis.figure.dpi_scale_trans
    placed = axis.transData.inverted().transform(
        inches.transform(_apart(inches.inverted().transform(axis.transData.transform(points)), 0.17))
    )
    for number, (point, at, colour, marker) in enumerate(zip(points, placed, colours, markers, strict=True), 1):
        axis.plot(*zip(point, at, strict=True), color=colour, lw=0.6)
        axis.plot(*at, marker, color=colour, ms=11 if marker == "o" else 15, mec="white", mew=0.6, clip_on=False)
        axis.annotate(str(number), at, color="white", size=7, ha="center", va="center_baseline")


def _apart(points: np.ndarray, gap: float) -> np.ndarray:
    """Points, (n, 2), pushed from each other until no two are nearer than `gap`, as far as 200 rounds go."""
    angles = np.linspace(0, 2 * np.pi, len(points), endpoint=False)
    moved = points + 1e-3 * np.column_stack([np.cos(angles), np.sin(angles)])  # coincident ones need a direction
    for _ in range(200):
        between = moved[:, None] - moved
        distance = np.linalg.norm(between, axis=-1)
        np.fill_diagonal(distance, np.inf)
        moved = moved + (between / distance[..., None] * np.maximum(gap - distance, 0)[..., None]).sum(1) / 2
    return moved


def _front(axis: Axes, points: np.ndarray, better: int) -> None:
    """A line through the points, (n, 2), that no other beats in both: higher in y, and in x lower (-1) or higher."""
    x, y = points[:, 0] * better, points[:, 1]
    kept = [i for i in range(len(x)) if not np.any((x >= x[i]) & (y >= y[i]) & ((x > x[i]) | (y > y[i])))]
    kept.sort(key=lambda i: points[i, 0])
    axis.plot(*points[kept].T, color="0.75", lw=3, zorder=0)


@dataclass(frozen=True)
class Course:
    """A method over training; arrays are (seeds, steps)."""

    progress: np.ndarray  # (steps,)
    g: Mapping[str, np.ndarray]  # positive, negative, trained
    share_progress: np.ndarray  # (updates,)
    share: np.ndarray  # (seeds, updates) lambda, the weight's share of negative learning


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
    for part, colour in PART_COLOURS.items():
        for seed in course.g[part]:
            axis.plot(course.progress, seed, color=colour, lw=0.5, alpha=0.45)
        axis.plot(course.progress, course.g[part].mean(0), "o-", color=colour, lw=1.5, ms=2.5, label=part)
