"""Sphinx's configuration of the site. `make book` stages its source first: see docs/making/stage.py."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

from making import docstrings
from making.packaged import MATHJAX, packaged
from preflab import __version__

project, author, copyright = "preflab", "The preflab authors", "the preflab authors, MIT licence"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

# Notebooks are shown as they are committed. Nothing is executed.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# Furo reads well on a phone, in the dark and on paper, and asks no other host for fonts or scripts.
html_theme = "furo"
html_title = "preflab"
html_copy_source = False
html_css_files = ["site.css"]

# MathJax comes out of a Python package and lies beside the pages, so formulas need no network.
html_static_path = ["_static", packaged(*MATHJAX)]
mathjax_path = "tex-svg.js"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
viewcode_line_numbers = True
add_module_names = False


def setup(app):
    """Docstrings are plain text: see docs/making/docstrings.py."""
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-process-signature", docstrings.signature)
    app.connect("autodoc-skip-member", docstrings.foreign)
