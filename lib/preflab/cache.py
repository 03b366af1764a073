"""A content-addressed cache of trained stages: no stage is trained twice, none half-written is used.

An entry is a folder named after the hash of everything that decides its content: parameters, data,
code, library versions. It is built under a lock in `NAME.partial/`, which outlives a killed process
(checkpoints inside let the next one go on), and gets its own name only when complete. Loading checks
every file against the recorded hash. Deleting the cache loses nothing but time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from preflab.errors import BadInput

MANIFEST = "manifest.json"
PRESENTATION = {
    "__init__.py", "cache.py", "claims", "cli.py", "evaluation.py", "figures", "judging.py", "notebooks.py",
    "parameters.py", "paths.py", "rules.py", "runs.py", "selection.py",
}  # fmt: skip


class Cache:
    """Entries under `root`."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def folder(self, kind: str, key: dict) -> Path:
        """Where the entry is, or will be."""
        return self.root / f"{kind}-{digest(_full_key(kind, key))}"

    def entry(self, kind: str, key: dict, build: Callable[[Path], None]) -> Path:
        """The folder for `key`, built by `build(folder)` where it is not there yet.

        `key` holds JSON values. Raises BadInput for a folder that cannot be written and for an entry
        whose files are not those that were stored.
        """
        folder = self.folder(kind, key)
        partial = folder.with_name(f"{folder.name}.partial")
        with self._locked(folder.name):
            if folder.exists():
                _check(folder)
                return folder
            partial.mkdir(exist_ok=True)
            build(partial)
            files = sorted(f for f in partial.rglob("*") if f.is_file() and f.name != MANIFEST)
            manifest = {"key": _full_key(kind, key), "files": {str(f.relative_to(partial)): _sha256(f) for f in files}}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            os.replace(partial, folder)
        return folder

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        lock = FileLock(self.root / f"{name}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise BadInput(f"cache {self.root}: not writable ({error.strerror})") from error
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _full_key(kind: str, key: dict) -> dict:
    return {"kind": kind, **key, "code": code_version(), "versions": library_versions()}


def _check(folder: Path) -> None:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        bad = [name for name, sha in files.items() if _sha256(folder / name) != sha]
    except (OSError, ValueError, KeyError, TypeError):
        bad = [MANIFEST]
    if bad:
        raise BadInput(f"cache entry {folder}: {bad[0]} is not what was stored; delete the folder to rebuild it")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def digest(value: object) -> str:
    """16 hex digits of the hash of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_version(without: frozenset[str] = frozenset(PRESENTATION)) -> str:
    """Hash of the library's sources that decide numbers; those that only present them do not count, and of
    rules each run counts its own."""
    package = Path(__file__).parent
    sources = sorted(p for p in package.rglob("*.py") if p.relative_to(package).parts[0] not in without)
    return digest({str(p.relative_to(package)): _sha256(p) for p in sources})


@cache
def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "trl", "peft", "numpy")}
