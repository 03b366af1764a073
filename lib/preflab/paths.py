"""Where the checkout and its results are; light to import, so that a mistyped command fails at once."""

from pathlib import Path

from preflab.errors import BadInput

MARKS = ("notebooks", "params", "pyproject.toml")  # what a checkout of this project holds
SOLUTIONS = "solutions"  # of exercises: a folder of notebooks/ and of notebooks/src/, and how names in it end
MODELS = "models"  # the folder of a checkout where `preflab model` puts what it gets


def project_root() -> Path:
    """The checkout that the working directory is in; from anywhere else, the one this package is installed from.

    Raises BadInput if there is neither: a package that was installed without a checkout has no notebooks.
    """
    here = Path.cwd()
    installed = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, installed):
        if all((folder / mark).exists() for mark in MARKS) and _is_ours(folder / "pyproject.toml"):
            return folder
    raise BadInput(f"no checkout of preflab at {here} or above: clone the project and run from its folder")


def _is_ours(file: Path) -> bool:
    return 'name = "preflab"' in file.read_text(errors="replace")


def results_root() -> Path:
    """`results/` of the checkout: results and the cache."""
    return project_root() / "results"
