"""What holds in every module: values do not change, and what goes in step is of one length."""

import ast
import importlib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import preflab

LIB = Path(preflab.__file__).parent
MODULES = sorted(path.relative_to(LIB) for path in LIB.rglob("*.py") if "figures" not in path.parts)
SHORTEST = {  # zips that end with the shorter list
    "likelihood.py": 1,  # what two lists of tokens begin with
    "data/worlds/guides/grammar.py": 1,  # as many ordinals as there are steps
}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_dataclasses_are_frozen_and_zips_are_strict(path):
    """A value that changed would be another under the same identity. A picture may leave axes empty."""
    name = ".".join(["preflab", *path.with_suffix("").parts]).removesuffix(".__init__")
    own = [value for value in vars(importlib.import_module(name)).values() if getattr(value, "__module__", "") == name]
    assert all(value.__dataclass_params__.frozen for value in own if isinstance(value, type) and is_dataclass(value))
    calls = [node for node in ast.walk(ast.parse((LIB / path).read_text())) if isinstance(node, ast.Call)]
    zips = [ast.unparse(call) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "zip"]
    assert len([text for text in zips if "strict=True" not in text]) == SHORTEST.get(str(path), 0)
