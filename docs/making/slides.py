"""Slides of one committed notebook: python docs/making/slides.py NAME writes book/slides/NAME.slides.html.

Nothing is run. A notebook here says nothing of slides, and nbconvert would put all of it on one. So headings decide.
"""

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs")]

from making.packaged import MATHJAX, REVEAL, packaged

SLIDES = ROOT / "book" / "slides"


def pieces(cells: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells, with a cell of text for each heading in it, and with their types of slide."""
    found = []
    for cell in cells:
        texts = re.split(r"^(?=## )", cell.source, flags=re.M) if cell.cell_type == "markdown" else [cell.source]
        parts = [text for text in texts if text]
        found += [nbformat.from_dict({**cell, "source": x, "id": f"{cell.id}-{i}"}) for i, x in enumerate(parts)]
    for cell in found:
        cell.metadata = {**cell.metadata, "slideshow": {"slide_type": slide_type(cell)}}
    return found


def slide_type(cell: nbformat.NotebookNode) -> str:
    """A heading begins a slide, other text begins one below it, and code stays with its text."""
    if cell.cell_type != "markdown":
        return "-"
    return "slide" if cell.source.startswith(("# ", "## ")) else "subslide"


def slides(name: str) -> str:
    """The slides of a notebook as HTML."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.cells = pieces(notebook.cells)
    exporter = SlidesExporter(
        template_name="offline_slides",
        extra_template_basedirs=[str(Path(__file__).parent)],
        reveal_url_prefix="reveal",
        reveal_theme="white",
    )
    return exporter.from_notebook_node(notebook, {"metadata": {"name": name}})[0]


if __name__ == "__main__":
    page = SLIDES / f"{sys.argv[1]}.slides.html"
    shutil.copytree(packaged(*REVEAL), SLIDES / "reveal" / "dist", dirs_exist_ok=True)
    shutil.copy(packaged(*MATHJAX), SLIDES)
    page.write_text(slides(sys.argv[1]))
    print(page.relative_to(ROOT))
