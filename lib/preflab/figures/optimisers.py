"""Figures of notebook 08."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LOOKS = {
    "descent": ("0.15", "o-"),
    "own batch": ("#e08e0b", "s--"),
    "preconditioned": ("#6a4c93", "^-"),
    "real step": ("#2a7f9e", "v--"),
    "exact": ("#d1495b", "D-"),
}
OPTIMISERS = {"Adam": "#2a7f9e", "SGD": "#e08e0b"}


def rungs(updates: np.ndarray, changes: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Change of NLL(D') by one update, from what G says to what happens: one panel an optimiser.

    updates is (S,), counted from 1; changes[optimiser][rung] is (seeds, S). A thin line is a seed, a thick one their
    mean. Each panel has a scale of its own.
    """
    figure, axes = plt.subplots(1, len(changes), figsize=(10, 3.8), layout="constrained", squeeze=False)
    for axis, (optimiser, curves) in zip(axes[0], changes.items(), strict=True):
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        for rung, (colour, line) in LOOKS.items():
            _curves(axis, updates, curves[rung], colour, line, rung)
        axis.set_title(optimiser, loc="left", size=10)
        _log_updates(axis, updates)
    axes[0, 0].set_ylabel("change of NLL(D′) by one update, nats")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(LOOKS), frameon=False)
    return figure


def links(means: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """What each link adds on average over the updates that are taken apart: means[optimiser][link] is (seeds,).

    A bar is the mean over seeds, a point a seed.
    """
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    axis.axhline(0, color="0.6", lw=0.8)
    width = 0.8 / len(means)
    for i, (optimiser, found) in enumerate(means.items()):
        x = np.arange(len(found)) + (i - (len(means) - 1) / 2) * width
        axis.bar(x, [values.mean() for values in found.values()], width * 0.9, color=OPTIMISERS[optimiser], alpha=0.55)
        for at, values in zip(x, found.values(), strict=True):
            axis.plot(np.full(len(values), at), values, "o", ms=3.5, color=OPTIMISERS[optimiser])
        axis.plot([], [], "s", color=OPTIMISERS[optimiser], label=optimiser)
        axis.set_xticks(range(len(found)), list(found))
    axis.set_ylabel("change of NLL(D′) an update, nats")
    axis.legend(frameon=False)
    return figure


def every_update(curves: Mapping[str, np.ndarray], noise: Mapping[str, np.ndarray]) -> Figure:
    """The exact change of NLL(D') by every update, for each unit of the schedule's factor, and its noise.

    curves[optimiser] and noise[optimiser] are (seeds, T). Every seed is a line with a band of twice its standard error.
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(10, 3.2), layout="constrained", squeeze=False)
    for axis, (optimiser, found) in zip(axes[0], curves.items(), strict=True):
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        x = np.arange(1, found.shape[1] + 1)
        for style, seed, error in zip(("-", "--", ":", "-.", "-"), found, noise[optimiser], strict=False):
            axis.fill_between(x, seed - 2 * error, seed + 2 * error, color=OPTIMISERS[optimiser], alpha=0.15, lw=0)
            axis.plot(x, seed, style, lw=1.2, color=OPTIMISERS[optimiser])
        axis.set_title(optimiser, loc="left", size=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("update")
    axes[0, 0].set_ylabel("change of NLL(D′) at the full rate, nats")
    return figure


def training(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Curves along training, a panel each: panels[title][optimiser] is (seeds, moments)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 2.8), layout="constrained", squeeze=False)
    for axis, (title, by_optimiser) in zip(axes[0], panels.items(), strict=True):
        for optimiser, curves in by_optimiser.items():
            _curves(axis, np.arange(curves.shape[1]), curves, OPTIMISERS[optimiser], "-", optimiser)
        axis.set_title(title, loc="left", size=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("updates")
    axes[0, 0].legend(frameon=False)
    return figure


def _curves(axis: Axes, x: np.ndarray, curves: np.ndarray, colour: str, line: str, label: str) -> None:
    """Thin lines for seeds, a thick one for their mean."""
    for seed in curves:
        axis.plot(x, seed, line.lstrip("os^vD"), color=colour, lw=0.6, alpha=0.45)
    axis.plot(x, curves.mean(0), line, ms=3.5, lw=1.8, color=colour, label=label)


def _log_updates(axis: Axes, updates: np.ndarray) -> None:
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300) if tick <= updates.max()]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("update")
