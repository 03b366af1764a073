"""Weights that lie on this disk: what they are, where they are from, and whether they are still the same.

Whatever this package writes has a `provenance.json` beside it. It says in words what the weights are: published ones,
or dequantised from a few bits, which are another model. It also has the size and the hash of every file.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preflab.files import sha256

PROVENANCE = "provenance.json"
SMALL = 2**24  # bytes; a file up to this size is hashed whenever it is asked for, in a few milliseconds
LIBRARIES = ("gguf", "huggingface_hub", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Weights:
    """A model's folder or one GGUF file, by its absolute path."""

    path: Path

    @property
    def location(self) -> str:
        return str(self.path)

    def fingerprint(self) -> dict[str, Any]:
        """What stands for the content in a stage's identity: every file by its name in the folder, not by its place.

        Gigabytes are not hashed here, because every process of a run asks. A small file counts by its hash. A large
        one counts by the hash in the provenance, as long as it has the size and the time of modification that are
        recorded there, and otherwise by this size and time. So replaced weights are other weights, and a copy of a
        large file that nobody vouches for may train again what is trained already. Raises OSError if there is nothing.
        """
        if self.path.is_file():
            return {"GGUF": _content(self.path, {})}
        recorded = read_provenance(self.path).get("files", {})
        return {file.name: _content(file, recorded.get(file.name, {})) for file in _files(self.path)}


def _content(file: Path, recorded: dict[str, Any]) -> str | list[int]:
    found = {"size": file.stat().st_size, "modified": file.stat().st_mtime_ns}
    if "sha256" in recorded and found == {name: recorded.get(name) for name in found}:
        return recorded["sha256"]
    return sha256(file) if found["size"] <= SMALL else [*found.values()]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name != PROVENANCE)


def write_provenance(folder: Path, facts: dict[str, Any]) -> None:
    """Write what is known of the weights in a finished folder, with the libraries' versions and every file."""
    files = {
        file.name: {"size": file.stat().st_size, "modified": file.stat().st_mtime_ns, "sha256": sha256(file)}
        for file in _files(folder)
    }
    versions = {name: version(name) for name in LIBRARIES}
    text = json.dumps({**facts, "versions": versions, "files": files}, indent=1)
    (folder / PROVENANCE).write_text(text + "\n")


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `write_provenance` wrote; empty if the folder has none that can be read."""
    try:
        found = json.loads((folder / PROVENANCE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {}


def is_as_written(folder: Path) -> bool:
    """Whether the folder has a provenance, and every file in it the hash that is recorded there."""
    recorded = read_provenance(folder).get("files", {})
    present = {file.name: file for file in _files(folder)} if recorded else {}
    return bool(recorded) and all(
        name in present and sha256(present[name]) == stored["sha256"] for name, stored in recorded.items()
    )
