"""What Snakemake can run: a file of params/ as a whole or one of its parts, and the words that run it.

A part is one seed or one setting of a run, or both. Its name is the run's and a label for each:
01_sequential_settings--seed-3. What it trains stays in the cache, where the whole run finds it.
"""

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from preflab.errors import BadInput, shown
from preflab.paths import project_root
from preflab.running.asked import command_line, found
from preflab.running.reading import defaults

AXES = {"seed": "seeds", "setting": "settings"}  # what a run is taken apart by: the parameter that has them all
CHOOSES = "sweep_seeds"  # a run with this parameter compares seeds before it goes on, so it stays whole
WORKERS = 2  # of the section `hardware`, where nothing is said
APART = "--"  # before each label


def outputs(profile: str, name: str) -> list[str]:
    """What a run leaves: its numbers and the executed notebook."""
    return [f"results/{profile}/{name}/{file}" for file in ("metrics.json", "notebook.ipynb")]


def sources(profile: str, name: str) -> list[str]:
    """The files beside the library that decide a run: its notebook, and its parameters if they are in a file."""
    notebook, file, _ = found(name.partition(APART)[0], profile)
    return [str(Path(path).relative_to(project_root())) for path in (notebook, file) if path]


def parts(profile: str, name: str, by: str | Sequence[str]) -> list[str]:
    """The names of the parts of a run, taken apart `by` one or more of `AXES`. Raises BadInput.

    There are none of a part, and none of a run that cannot be taken apart so.
    """
    by = [by] if isinstance(by, str) else by
    if unknown := [axis for axis in by if axis not in AXES]:
        raise BadInput(f"by={shown(unknown[0])}: expected one of: {', '.join(AXES)}")
    values = {} if APART in name else _values(profile, name)
    axes = [_pieces(axis, values) for axis in by if AXES[axis] in values]
    if not axes or CHOOSES in values:
        return []
    return [APART.join([name, *labels]) for labels in product(*axes)]


def words(profile: str, name: str, threads: int, data: str | None) -> str:
    """What follows `preflab` to run it, as a shell reads it. Raises BadInput for a part that there is not.

    Processes are as many as threads, unless the file says how many. `data` takes the place of the file's folder.
    """
    run, *labels = name.split(APART)
    values, over = _values(profile, run), {}
    known = {label: (key, value) for axis, key in AXES.items() for label, value in _pieces(axis, values).items()}
    if missing := [label for label in labels if label not in known]:
        raise BadInput(f"{name}: no part {missing[0]}, expected one of: {', '.join(known) or 'none'}")
    if labels:
        over = {"name": name} | dict(known[label] for label in labels)
    if threads != WORKERS and "workers" not in values.get("hardware", {}):
        over["hardware"] = {"workers": threads}
    if data:
        over["data"] = data
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in over.items()]
    return command_line(run, profile, overrides).removeprefix("preflab ")


def _values(profile: str, run: str) -> dict[str, Any]:
    """A run's parameters as they are written down: its file's over its notebook's."""
    notebook, _, given = found(run, profile)
    return {**defaults(notebook), **given}


def _pieces(axis: str, values: dict[str, Any]) -> dict[str, Any]:
    """By label: what the axis' parameter is in that part, a list or a mapping of one."""
    whole = values.get(AXES[axis], [])
    if isinstance(whole, dict):
        return {f"{axis}-{re.sub('[^A-Za-z0-9]+', '-', name)}": {name: row} for name, row in whole.items()}
    return {f"{axis}-{value}": [value] for value in whole}
