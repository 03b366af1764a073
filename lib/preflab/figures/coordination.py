"""Figures of notebook 04."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preflab.figures.ablations import METHOD_COLOURS

PART_COLOURS = {"positive": "#2a7f9e", "negative": "#d1495b", "trained": "0.25"}


@dataclass(frozen=True)
class Place:
    """Where a method's candidates ended, the chosen one first; each array is (candidates,)."""

    family: str  # dpo (learns from pairs) or ppo (from its samples)
    score: np.ndarray
    kl: np.ndarray
    diversity: np.ndarray


def pareto(places: Mapping[str, Place], before: tuple[float, float]) -> Figure:
    """Oracle score against KL and against diversity: chosen candidates numbered, the others small; a line joins those
    of the chosen that no other beats in both. `before` is the SFT model's score and diversity."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True, layout="constrained")
    for axis, name, better in ((axes[0], "kl", -1), (axes[1], "diversity", 1)):
        chosen = np.array([[getattr(place, name)[0], place.score[0]] for place in places.values()])
        _front(axis, chosen, better)
        for number, place in enumerate(places.values(), 1):
            colour, x = METHOD_COLOURS[place.family], getattr(place, name)
            axis.plot(x[1:], place.score[1:], ".", color=colour, ms=4, alpha=0.45)
            axis.plot(x[0], place.score[0], "o", color=colour, ms=11, mec="white")
            axis.annotate(str(number), (x[0], place.score[0]), color="white", size=7, ha="center", va="center")
    axes[0].plot(0, before[0], "*", color="0.3", ms=11)
    axes[1].plot(before[1], before[0], "*", color="0.3", ms=11)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_xlim(left=-0.05)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_xlabel("KL from the SFT model, nats a response")
    axes[1].set_xlabel("entropy, nats a token")
    axes[0].set_ylabel("oracle score of sampled answers")
    for axis in axes:
        _ground(axis, [before[0], *(score for place in places.values() for score in place.score)])
    handles = [
        plt.Line2D([], [], marker=f"${number}$", color=METHOD_COLOURS[place.family], ls="", ms=7, label=name)
        for number, (name, place) in enumerate(places.items(), 1)
    ]
    handles.append(plt.Line2D([], [], marker="*", color="0.3", ls="", ms=9, label="SFT"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _front(axis: Axes, points: np.ndarray, better: int) -> None:
    """A line through the points, (n, 2), that no other beats in both: higher in y, and in x lower (-1) or higher."""
    x, y = points[:, 0] * better, points[:, 1]
    kept = [i for i in range(len(x)) if not np.any((x >= x[i]) & (y >= y[i]) & ((x > x[i]) | (y > y[i])))]
    kept.sort(key=lambda i: points[i, 0])
    axis.plot(*points[kept].T, color="0.75", lw=3, zorder=0)


def _ground(axis: Axes, scores: Sequence[float]) -> None:
    """From the first score, the SFT model's, or the lowest tenth: broken languages score far below and fall out."""
    low, high = min(scores[0], np.quantile(scores, 0.1)), max(scores)
    axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))


@dataclass(frozen=True)
class Course:
    """A method over training; arrays are (seeds, steps)."""

    progress: np.ndarray  # (steps,)
    g: Mapping[str, np.ndarray]  # positive, negative, trained
    share_progress: np.ndarray  # (updates,)
    share: np.ndarray  # (seeds, updates) lambda, the weight's share of negative learning


def schedules(courses: Mapping[str, Course]) -> Figure:
    """Above what the schedule does, below the G it produces, each on its own scale."""
    figure, axes = plt.subplots(
        2,
        len(courses),
        figsize=(2.4 * len(courses), 4.2),
        squeeze=False,
        sharex=True,
        height_ratios=(1, 1.6),
        layout="constrained",
    )
    for (above, below), (name, course) in zip(axes.T, courses.items(), strict=True):
        above.axhline(0.5, color="0.8", lw=0.8, zorder=0)
        for seed in course.share:
            above.plot(course.share_progress, seed, color="0.25", lw=0.8, alpha=0.6)
        above.set_title(name, loc="left", size=9)
        above.set_ylim(0, 1)
        _g(below, course)
    axes[0, 0].set_ylabel("λ")
    axes[1, 0].set_ylabel("G")
    axes[1, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("share of training", size=10)
    return figure


def parts(courses: Mapping[str, Course]) -> Figure:
    """G of the parts of several methods, side by side."""
    figure, axes = plt.subplots(
        1, len(courses), figsize=(2.8 * len(courses), 2.7), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (name, course) in zip(axes[0], courses.items(), strict=True):
        _g(axis, course)
        axis.set_title(name, loc="left", size=9)
    axes[0, 0].set_ylabel("G")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("share of training", size=10)
    return figure


def _g(axis: Axes, course: Course) -> None:
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    for part, colour in PART_COLOURS.items():
        for seed in course.g[part]:
            axis.plot(course.progress, seed, color=colour, lw=0.5, alpha=0.45)
        axis.plot(course.progress, course.g[part].mean(0), "o-", color=colour, lw=1.5, ms=2.5, label=part)
