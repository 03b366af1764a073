"""Reading parameters: YAML files, and the defaults in a notebook's parameters cell."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from preflab.cells import literals
from preflab.errors import BadInput
from preflab.paths import project_root

if TYPE_CHECKING:
    from preflab.experiments.experiment import Parameters

PARAMETERS_CELL = '# %% tags=["parameters"]\n'


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML would keep the last and say nothing."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise BadInput(f"line {key_node.start_mark.line + 1}: key {key!r}, expected text")
            if key in seen:
                raise BadInput(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice, expected once")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInput naming file and line for anything else."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as YAML: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping of parameter names to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for. Raises BadInput that begins with `where`."""
    try:
        return yaml.load(text, _UniqueKeys)  # a SafeLoader
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None


def defaults(notebook: Path) -> dict[str, Any]:
    """The values in the parameters cell of a notebook, or of its source (.py), read without running it."""
    if notebook.suffix == ".ipynb":
        cells = json.loads(notebook.read_text())["cells"]
        tagged = next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", []))
        return literals("".join(tagged))
    _, _, after = notebook.read_text().partition(PARAMETERS_CELL)
    return literals(after.partition("\n# %%")[0])


def find_notebook(name: str, folder: str = "notebooks", suffix: str = "ipynb") -> Path:
    """The notebook of a run: of those whose stem begins `name`, the longest. Raises BadInput."""
    notebooks = sorted((project_root() / folder).glob(f"*.{suffix}"))
    fitting = [notebook for notebook in notebooks if name.startswith(notebook.stem)]
    if not fitting:
        known = ", ".join(notebook.stem for notebook in notebooks) or "none found"
        raise BadInput(f"{name}: no notebook of this name in {folder}/, expected one of: {known}")
    return max(fitting, key=lambda notebook: len(notebook.stem))


def resolve(notebook: Path, given: Mapping[str, Any], where: str) -> "Parameters":
    """A notebook's parameters: `given` over its own defaults, checked. Raises BadInput."""
    from preflab.experiments import EXPERIMENTS  # slow: torch and everything that trains

    return EXPERIMENTS[notebook.stem].checked({**defaults(notebook), **given}, where)
