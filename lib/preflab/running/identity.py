"""What a stage is: everything that decides its content, as one JSON value, and its digest."""

import hashlib
import inspect
import json
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from types import FunctionType
from typing import Any

from preflab.running.code import package
from preflab.settings import INCIDENTAL
from preflab.stages.stage import Stage

LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "numpy", "scipy")


@lru_cache(maxsize=4096)
def identity(stage: Stage) -> str:
    """16 hex digits of what decides a stage's content: its fields, its parents, its code, the libraries' versions."""
    return digest(key(stage))


def key(stage: Stage) -> dict[str, Any]:
    """The value behind `identity`; it stands in an entry's manifest."""
    return {"stage": _described(stage), "versions": library_versions()}


def described(value: Any) -> Any:
    """A field's value as JSON. Raises TypeError for what has no stable form.

    A parent stage counts by its identity. Data count by their fingerprint, whatever the file's name, and by the code
    that hands them out. Every other dataclass (settings, a method, a rule) counts by its fields and by the code that
    its class can reach.
    """
    if isinstance(value, Stage):
        return {"parent": type(value).__name__, "identity": identity(value)}
    if hasattr(value, "fingerprint"):
        code = code_of(type(value))  # of tokens, for one: the fingerprint is of texts
        return {"data": type(value).__name__, "code": code, "fingerprint": described(value.fingerprint())}
    if isinstance(value, FunctionType):
        return {"code": code_of(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return _described(value)
    if isinstance(value, (tuple, list)):
        return [described(inner) for inner in value]
    if isinstance(value, dict):
        return {str(name): described(inner) for name, inner in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__}: expected a dataclass or a JSON value")


def _described(value: Any) -> dict[str, Any]:
    """Incidental fields (how often a checkpoint is written) decide nothing."""
    deciding = [f.name for f in fields(value) if not f.metadata.get(INCIDENTAL)]
    return {
        "is": type(value).__name__,
        "code": code_of(type(value)),
        **{name: described(getattr(value, name)) for name in deciding},
    }


def code_of(thing: Any) -> str:
    """The hash of the code that a class or function of this package can reach; of another module's, of its own text."""
    if thing.__module__.partition(".")[0] != package().name:
        return digest(inspect.getsource(thing))
    return package().code_hash(thing.__module__, thing.__qualname__)


def digest(value: object) -> str:
    """16 hex digits of the hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
