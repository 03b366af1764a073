"""A figure in words, for those who do not see it: what its panels, axes, colours and marks stand for.

The words are the figure's own, so they cannot say anything else than it does. What came out stands in the text beside
it, and every number in metrics.json.
"""

import re
import textwrap
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

LONGEST = 600  # characters; a screen reader reads them all
NUMBER = re.compile(r"[-−+]?[\d.,]+ ?%?|")


def described(figure: Figure) -> str:
    """One line. What the figure does not name is left out."""
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    panels = [axis for axis in figure.axes if axis not in bars]
    titles = _different(axis.get_title(place) for axis in panels for place in ("left", "center"))
    legends = [*figure.legends, *(axis.get_legend() for axis in panels if axis.get_legend())]
    told = {
        f"{len(panels)} panels" if len(panels) > 1 else "Title": titles,
        "Horizontal": _different([*(axis.get_xlabel() for axis in panels), figure.get_supxlabel()]),
        "Vertical": _different([*(axis.get_ylabel() for axis in panels), figure.get_supylabel()]),
        "Colours": _different(label for bar in bars for label in (bar.get_xlabel(), bar.get_ylabel())),
        "Legend": _different(text.get_text() for legend in legends for text in legend.get_texts()),
        "Rows": _different(name for axis in panels for name in _names(axis, axis.yaxis)),
        "Columns": _different(name for axis in panels for name in _names(axis, axis.xaxis)),
    }
    line = " ".join(f"{what}: {'; '.join(words)}." for what, words in told.items() if words)
    return textwrap.shorten(line, LONGEST, placeholder=" …") or "Texts with coloured words."


def _names(axis: Axes, side: Axis) -> list[str]:
    """The labels of ticks that are words."""
    if not axis.axison:
        return []
    labels = [label.get_text() for label in side.get_ticklabels()]
    return [] if all(NUMBER.fullmatch(label) for label in labels) else labels


def _different(words: Iterable[str]) -> list[str]:
    """Each once, in order, as one line; none that is empty."""
    return list(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))
