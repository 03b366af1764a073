"""A cache of stages: no stage is made twice, none half-made is used.

An entry is a folder named after the stage's identity. It is made under a lock in `NAME.partial/`, which outlives a
killed process (checkpoints inside let the next one go on), and gets its own name only when it is complete. Its manifest
has the size and the hash of every file. Loading compares names and sizes; `Cache.check` compares hashes. Deleting the
cache loses nothing but time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from preflab.errors import BadInput
from preflab.files import sha256
from preflab.running.identity import identity, key
from preflab.stages.stage import Stage

MANIFEST = "manifest.json"


class Cache:
    """Entries under `root`; a `preflab.stages.stage.Store`."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def path(self, stage: Stage) -> Path:
        """Where the entry is, or will be."""
        return self.root / f"{type(stage).__name__}-{identity(stage)}"

    def holds(self, stage: Stage) -> bool:
        return self.path(stage).exists()

    def folder(self, stage: Stage) -> Path:
        """The entry's folder, built first if it is not there yet.

        Raises BadInput for a cache that cannot be written and for an entry whose files are not those that were stored.
        """
        return self._entry(stage, stage.build)

    def deposit(self, stage: Stage, write: Callable[[Path], None]) -> None:
        """Let `write(folder)` make the entry, unless it is there already."""
        self._entry(stage, write)

    def _entry(self, stage: Stage, build: Callable[[Path], None]) -> Path:
        folder = self.path(stage)
        if not folder.exists():  # a finished entry needs no lock, so that a read-only cache can be read
            with self._locked(folder.name):
                if not folder.exists():
                    self._build(stage, folder, build)
                    return folder
        if wrong := _changed(folder, _size):
            raise BadInput(f"cache entry {folder}: {wrong} is not what was stored; delete the folder to rebuild it")
        return folder

    def _build(self, stage: Stage, folder: Path, build: Callable[[Path], None]) -> None:
        partial = folder.with_name(f"{folder.name}.partial")
        with self._writable():
            partial.mkdir(exist_ok=True)
        build(partial)
        files = sorted(f for f in partial.rglob("*") if f.is_file() and f.name != MANIFEST)
        stored = {str(f.relative_to(partial)): {"size": _size(f), "sha256": _sha256(f)} for f in files}
        (partial / MANIFEST).write_text(json.dumps({**key(stage), "files": stored}, indent=1))
        os.replace(partial, folder)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        lock = FileLock(self.root / f"{name}.lock")
        with self._writable():
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadInput(f"cache {self.root}: not writable ({error.strerror})") from error

    def check(self) -> Iterator[tuple[Path, str | None]]:
        """Every finished entry, with the first file whose hash is not the stored one; None if all are as stored."""
        for entry in sorted(self.root.glob("*")):
            if entry.suffix not in (".partial", ".lock"):
                yield entry, _changed(entry, _sha256)

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _changed(folder: Path, measure: Callable[[Path], int | str]) -> str | None:
    """The first file of which `measure` (`_size` or `_sha256`) is not what the manifest has; None if there is none."""
    kind = "size" if measure is _size else "sha256"
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wrong = (name for name, stored in files.items() if measure(folder / name) != stored[kind])
        return next(wrong, None) if files else MANIFEST
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return MANIFEST


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sha256(path: Path) -> str:
    return sha256(path) if path.is_file() else ""
