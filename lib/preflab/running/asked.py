"""What a command line asks for: a run's notebook and its parameters, with what `-p` lays over its file."""

import os
import shlex
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflab import paths
from preflab.errors import BadInput, shown
from preflab.running.reading import find_notebook, find_parameters, parse_yaml, read_yaml, resolve

if TYPE_CHECKING:
    from preflab.experiments.experiment import Parameters


def parameters_of(name: str, profile: str, overrides: list[str]) -> "Parameters":
    """The parameters of a run by its name, or by the path of its YAML file."""
    file = Path(name)
    if file.suffix == ".yaml":
        return resolved(find_notebook(file.stem), file, read_yaml(file), overrides)[1]
    return resolved(*found(name, profile), overrides)[1]


def command_line(name: str, profile: str, overrides: list[str]) -> str:
    """The words that ask for a run, as its provenance records them."""
    words = (word for override in overrides for word in ("-p", override))
    return shlex.join(["preflab", "run", name, "--profile", profile, *words])


def asked_by(command: str | None) -> tuple[str, str, list[str]]:
    """Name, profile and overrides of a recorded command; the reverse of `command_line`. Raises BadInput."""
    try:
        words = shlex.split(command or "")
    except ValueError:  # a quotation without its end
        words = []
    match words:
        case ["preflab", "run", name, "--profile", profile, *rest] if rest[::2] == ["-p"] * len(rest[1::2]):
            return name, profile, rest[1::2]
    raise BadInput(f"command {shown(command)}: expected a recorded `preflab run NAME --profile PROFILE`")


def found(name: str, profile: str) -> tuple[Path, Path | None, dict[str, Any]]:
    """The notebook of a run, its file of parameters if it has one, and what that gives. Raises BadInput."""
    files = find_parameters(profile)
    if name not in files:
        known = ", ".join(files) or "none found"
        raise BadInput(f"params/{profile}/{name}.yaml: no such file, expected one of: {known}")
    notebook, file = find_notebook(name), files[name]
    return notebook, file, {"profile": profile, "name": name, **(read_yaml(file) if file else {})}


def resolved(
    notebook: Path, file: Path | None, given: dict[str, Any], overrides: list[str]
) -> tuple[dict[str, Any], "Parameters"]:
    """What is given in all, and the parameters that it makes. Raises BadInput, also for what is not on this machine."""
    parameters = resolve(notebook, given, str(file or notebook))
    if overrides:
        given = _laid_over(given, _parse(overrides), parameters)
        parameters = resolve(notebook, given, "-p")
    parameters.check_there()
    return given, parameters


def _laid_over(given: dict[str, Any], over: dict[str, Any], settings: Any) -> dict[str, Any]:
    """A section of the command line is laid over the file's, at any depth; everything else takes its place.

    `settings` tells what a section is. A mapping of names that a reader chooses (`variants`) is none.
    """
    sections = {k for k, v in over.items() if is_dataclass(getattr(settings, k, None)) and isinstance(v, dict)}
    both = {k: _laid_over(given[k], over[k], getattr(settings, k)) for k in sections if isinstance(given.get(k), dict)}
    return {**given, **over, **both}


def _parse(overrides: list[str]) -> dict[str, Any]:
    """key=value, the value as YAML reads it: what a file cannot say, the command line cannot either."""
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise BadInput(f"-p {override}: expected key=value")
        if key in given:
            raise BadInput(f"-p {override}: {key} is given twice, expected once")
        given[key] = parse_yaml(value, f"-p {override}")
    _begin_here(given, "data")
    _begin_here(given, "alpaca_eval", "files:")
    if isinstance(base := given.get("base"), dict) and os.path.exists(os.path.expanduser(str(base.get("model")))):
        from preflab.stages.base import TINY  # imports torch, as the check of the parameters does next

        if base["model"] != TINY:
            _begin_here(base, "model")
    return given


def _begin_here(given: dict[str, Any], key: str, kind: str = "") -> None:
    """A path of the command line is relative to where the command was given; a notebook's, to the checkout.

    `kind` is what stands before the path.
    """
    value = given.get(key)
    if isinstance(value, str) and value.startswith(kind) and value != kind:
        path = os.path.expanduser(value.removeprefix(kind))
        given[key] = kind + os.path.relpath(path, paths.project_root())
