"""What a run has left in a folder of `results/` or `figures/`, read again and checked."""

import hashlib
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from preflab.errors import BadInput
from preflab.parsing import read_json
from preflab.paths import project_root


class _Written(BaseModel):
    """A JSON file of a run. Later runs may write more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


R = TypeVar("R", bound=_Written)


class Git(_Written):
    commit: str | None
    dirty: bool | None


class Provenance(_Written):
    """How a run was started, from what, and with what."""

    name: str
    command: str | None
    parameters: dict[str, Any]
    preflab: str
    git: Git
    versions: dict[str, str]
    platform: str
    device: str
    data: dict[str, Any]

    @property
    def profile(self) -> str:
        return str(self.parameters.get("profile"))

    @property
    def fingerprints(self) -> dict[str, str]:
        """By data set: the hash of the pairs that were read. Runs that report no data set have none."""
        reports = {name: report for name, report in self.data.items() if isinstance(report, dict)}
        return {name: str(report["fingerprint"]) for name, report in reports.items() if "fingerprint" in report}


class Sidecar(Provenance):
    """The JSON file beside a figure."""

    figure: str
    sha256: str
    alt: str = ""  # the figure in words; older runs have none


class Judged(_Written):
    """A claim as a run has judged it."""

    id: str
    statement: str
    statistic: str  # what was measured, and the rule
    value: float | None
    interval: tuple[float | None, float | None] | None
    verdict: str
    power: float | None = None


class Metrics(_Written):
    claims: list[Judged]
    metrics: dict[str, Any]
    series: dict[str, Any] = {}


@dataclass(frozen=True)
class Result:
    folder: Path
    found: Metrics
    provenance: Provenance

    @property
    def registration(self) -> str | None:
        """The hash of the registration that the run has read; None if it read none."""
        return self.found.metrics.get("registration")

    @property
    def claims(self) -> dict[str, Judged]:
        return {claim.id: claim for claim in self.found.claims}


def by_dotted_name(parameters: Mapping[str, Any], whole: Collection[str] = (), before: str = "") -> dict[str, Any]:
    """Parameters by name; those of sections as `section.name`. Mappings that are named in `whole` stay as they are."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        path = f"{before}{name}"
        inner = isinstance(value, Mapping) and value and path not in whole
        found |= by_dotted_name(value, whole, f"{path}.") if inner else {path: value}
    return found


def read_written(kind: type[R], path: Path, expected: str) -> R:
    """A JSON file of a run. Raises BadInput if it is not there or is something else."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file, expected {expected}")
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise BadInput(f"{path}: {fault(error)}; expected what a run writes") from None


def fault(error: ValidationError) -> str:
    """The first thing that a model has found wrong: where, and what."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg'].lower()}"


def read_result(folder: Path) -> Result:
    """What a run has left in `folder`. Raises BadInput for a folder that no run has written."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder, expected one of results/ or figures/")
    expected = "a folder that `preflab run` or `preflab publish` has written"
    found = read_written(Metrics, folder / "metrics.json", expected)
    return Result(folder, found, read_written(Provenance, folder / "provenance.json", expected))


def published() -> list[Result]:
    """Everything that is committed to figures/, by profile and name."""
    return [read_result(file.parent) for file in sorted((project_root() / "figures").glob("*/*/metrics.json"))]


def hash_at(commit: str, path: str) -> str | None:
    """The SHA-256 of a file at a commit, by its path in the checkout; None if git does not know it."""
    command = ["git", "-C", str(project_root()), "show", f"{commit}:{path}"]
    try:
        return hashlib.sha256(subprocess.run(command, capture_output=True, check=True).stdout).hexdigest()
    except (OSError, subprocess.CalledProcessError):
        return None
