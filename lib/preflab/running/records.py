"""What a run writes, as plain JSON, and where it collects it."""

import json
import math
import os
import shutil
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

PROGRESS = "progress"  # a file of lines, where the command that executes a notebook collects what goes to its folder


def staging_of(folder: Path, process: int) -> Path:
    """Where a process collects what goes to `folder`: the run in a kernel, or the command that executes it."""
    return folder.parent / f".{folder.name}.{process}"


def made_in(workspace: Path) -> Path:
    """Where a run leaves its results for the command that executes it."""
    return workspace / "made"


def take_place(made: Path, folder: Path) -> None:
    """Put the folder `made` where `folder` is. What was there before goes, and is whole until then."""
    old = made.with_name(f"{made.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(made, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(jsonable(value), indent=1, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Dataclasses, models, arrays and NumPy numbers as plain JSON; what is not finite becomes null."""
    if isinstance(value, BaseModel):
        return {name: jsonable(getattr(value, name)) for name in type(value).model_fields}
    if is_dataclass(value):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [jsonable(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.9g}") if math.isfinite(value) else None  # so that parts that nearly cancel add up
    return value.item() if isinstance(value, np.generic) else value
