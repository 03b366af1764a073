"""Scripts for the browser that Python packages carry. Site and slides ship them, so no reader asks another host."""

from importlib.metadata import distribution

MATHJAX = ("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax/tex-svg.js")
REVEAL = ("sphinx-revealjs", "sphinx_revealjs/_static/revealjs/dist")


def packaged(package: str, path: str) -> str:
    """Where a file or a folder of an installed package lies."""
    return str(distribution(package).locate_file(path))
