"""Figures of the notebooks. Each takes measured arrays and returns a matplotlib Figure; none computes."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure


def theme() -> None:
    """One look for every figure."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=1.05)
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})


def grid(n: int, width: float, height: float, sharey: bool) -> tuple[Figure, np.ndarray]:
    """n panels in rows of two or four."""
    columns = min(n, 2 if n <= 4 else 4)
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        sharey=sharey,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, axes
