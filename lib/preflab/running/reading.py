"""Reading parameters: YAML files, and the defaults in a notebook's parameters cell."""

import re
import warnings
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from preflab.cells import literals
from preflab.errors import BadInput, first_line, shown
from preflab.paths import project_root

if TYPE_CHECKING:
    import nbformat

    from preflab.experiments.experiment import Parameters

DEFAULT = "default"  # the profile of the notebooks' own values
PARAMETERS_CELL = '# %% tags=["parameters"]\n'


class _WithoutTraps(yaml.SafeLoader):
    """YAML without its traps; whatever PyYAML raises of a value names its line.

    A key given twice: PyYAML would keep the last and say nothing. 1:30 and 010: it would read 90 and 8. An alias: a few
    of them stand for a text that no memory holds.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _at(event, f"alias *{event.anchor}, expected the value itself")
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        tag, value = node.tag.rpartition(":")[2], node.value
        if tag in ("int", "float") and isinstance(value, str) and re.search(r":|^[-+]?0[0-7_]+$", value):
            raise _at(node, f"{shown(value)}, expected a decimal number, or text in quotes")
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, BadInput, RecursionError):
            raise
        except Exception:  # KeyError, AttributeError and more, of values that are not what their tags say
            raise _at(node, f"{shown(value)}, expected a YAML {tag}") from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _at(key_node, f"key {shown(key)}, expected text")
            if key in seen:
                raise _at(key_node, f"key {shown(key)} is given twice, expected once")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _at(place: Any, message: str) -> BadInput:
    return BadInput(f"line {place.start_mark.line + 1}: {message}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInput naming file and line for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not UTF-8")
        raise BadInput(f"{path}: not readable as YAML: {reason}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: {shown(values)}, expected a mapping of parameter names to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for. Raises BadInput that begins with `where`."""
    try:
        return yaml.load(text, _WithoutTraps)  # a SafeLoader
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except RecursionError:
        raise BadInput(f"{where}: values in values in values, expected a few levels") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{where}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None


def defaults(notebook: Path) -> dict[str, Any]:
    """The values in the parameters cell of a notebook, or of its source (.py), read without running it."""
    if notebook.suffix == ".ipynb":
        cells = read_notebook(notebook).cells
        tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        if not tagged:
            raise BadInput(f"{notebook}: no cell with the tag 'parameters', expected one")
        return literals(tagged[0])
    try:
        _, _, after = notebook.read_text(encoding="utf-8").partition(PARAMETERS_CELL)
    except UnicodeDecodeError:
        raise BadInput(f"{notebook}: not UTF-8; expected UTF-8 text") from None
    return literals(after.partition("\n# %%")[0])


def read_notebook(path: Path) -> "nbformat.NotebookNode":
    """A notebook, in the format of today. Raises BadInput for a file that is none."""
    import nbformat  # slow, and a kernel needs none of it

    try:
        with warnings.catch_warnings(action="ignore"):  # of cells without ids
            return nbformat.read(path, as_version=4)
    except OSError:
        raise
    except Exception as error:  # it has a type of its own for every fault
        raise BadInput(f"{path}: not readable as a notebook: {first_line(error)[:100]}") from None


def find_notebook(name: str, folder: str = "notebooks", suffix: str = "ipynb") -> Path:
    """The notebook of a run: of those whose stem begins `name`, the longest. Raises BadInput."""
    notebooks = sorted((project_root() / folder).glob(f"*.{suffix}"))
    fitting = [notebook for notebook in notebooks if name.startswith(notebook.stem)]
    if not fitting:
        known = ", ".join(notebook.stem for notebook in notebooks) or "none found"
        raise BadInput(f"{name}: no notebook of this name in {folder}/, expected one of: {known}")
    return max(fitting, key=lambda notebook: len(notebook.stem))


def profiles() -> dict[str, list[Path]]:
    """The YAML files of every profile of params/, in order. The default profile is there too, and has none."""
    files = sorted((project_root() / "params").glob("*/*.yaml"))
    return {DEFAULT: []} | {name: list(its) for name, its in groupby(files, lambda file: file.parent.name)}


def find_parameters(profile: str) -> dict[str, Path | None]:
    """The YAML files of a profile by name, in order. The default profile has the notebooks' own values, and no files.

    Raises BadInput for a profile that does not exist.
    """
    if profile == DEFAULT:
        return {notebook.stem: None for notebook in sorted((project_root() / "notebooks").glob("*.ipynb"))}
    known = profiles()
    if profile not in known:
        raise BadInput(f"profile {profile!r}: no such profile in params/, expected one of: {', '.join(sorted(known))}")
    return {file.stem: file for file in known[profile]}


def resolve(notebook: Path, given: Mapping[str, Any], where: str) -> "Parameters":
    """A notebook's parameters: `given` over its own defaults, checked. Raises BadInput."""
    from preflab.experiments import EXPERIMENTS  # slow: torch and everything that trains

    return EXPERIMENTS[notebook.stem].checked({**defaults(notebook), **given}, where)
