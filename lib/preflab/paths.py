"""Where the checkout and its results are; light to import, so that a mistyped command fails at once."""

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout this package is installed from. Never the working directory: papermill, nbval and
    JupyterLab each have another one."""
    return Path(__file__).resolve().parents[2]


def results_root() -> Path:
    """`results/` of the checkout, or $PREFLAB_RESULTS."""
    return Path(os.environ.get("PREFLAB_RESULTS") or project_root() / "results")
