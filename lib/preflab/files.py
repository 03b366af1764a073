"""Files on this disk: their hash, whether there is room for more, a folder that appears only when it is complete."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from preflab.errors import BadInput, first_line


def sha256(file: Path) -> str:
    """64 hex digits. Raises OSError for what is no readable file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_space(folder: Path, needed: int) -> None:
    """Raises BadInput if the disk of an existing folder has fewer than `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(f"{folder}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB")


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """What cannot be written inside (no space, no right) becomes a BadInput that names `where`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        said = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"{where}: not written: {said}") from error


@contextmanager
def complete(target: Path, needed: int) -> Iterator[Path]:
    """A folder to fill. It gets the name `target` in the end; after an error nothing of it is left.

    Raises BadInput if the disk has fewer than `needed` free bytes, or if something cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, needed)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
            folder = Path(staging) / target.name
            folder.mkdir()
            yield folder
            os.replace(folder, target)
