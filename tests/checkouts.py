"""Checkouts of their own for tests that run notebooks, and how their numbers are compared."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted(path.stem for path in (ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def checkout(folder: Path) -> Path:
    """A checkout of its own, with the committed notebooks and parameters: results and cache go there."""
    for part in ("notebooks", "params"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def numbers(value, path=""):
    """Every number in a JSON value, by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in numbers(inner, f"{path}/{i}").items()}
    return {path: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


def compare(found: dict, expected: dict, tolerance: float, counts=lambda path: True) -> None:
    """Every number that counts, within `tolerance` of what is expected: of its size where that is above 1."""
    ours, theirs = numbers(found), numbers(expected)
    ours, theirs = ({k: v for k, v in some.items() if counts(k)} for some in (ours, theirs))
    assert ours.keys() == theirs.keys()
    wrong = {k: (ours[k], v) for k, v in theirs.items() if abs(ours[k] - v) > tolerance * max(1, abs(v))}
    assert not wrong
