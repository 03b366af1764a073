"""Where data come from: worlds, the hub and files. Each gives tables of rows."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet

from preflab.data.worlds.named import world_objectives
from preflab.data.worlds.pairs import world_pairs
from preflab.errors import BadInput, disk_fault, shown
from preflab.hub import ask_hub_once
from preflab.parsing import parse_json

HH_OBJECTIVES = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


class Table(NamedTuple):
    """The rows of one file or split."""

    name: str  # the table is called this in errors
    split: str  # "train" or "test"
    rows: list[dict] | datasets.Dataset

    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they are first met."""
        if isinstance(self.rows, datasets.Dataset):
            return self.rows.column_names
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def numbered(self) -> Iterator[tuple[str, dict]]:
        """(where, row) for each row; `where` names it in errors, such as "train.jsonl: row 1"."""
        return ((f"{self.name}: row {n}", row) for n, row in enumerate(self.rows, 1))


def parse_source(source: str) -> tuple[str, str]:
    """("world" | "hub" | "files", name). Raises BadInput for any other kind of source, and for one without a name."""
    kind, _, name = str(source).partition(":")
    if kind not in ("world", "hub", "files") or not name:
        raise BadInput(f"source is {shown(source)}; expected world:NAME, hub:REPO or files:PATH")
    return kind, name


def named_objectives(kind: str, name: str) -> list[str]:
    """The objectives of a source that has tables of their own for each; [] if the rows name or imply the objective.

    A world has them, and so has a folder whose sub-folders have data, as that of HH-RLHF. A folder with data files of
    its own is one data set, whatever lies in its sub-folders. Raises BadInput for an unknown world.
    """
    if kind == "world":
        return world_objectives(name)
    if kind == "hub":
        return HH_OBJECTIVES if name == "Anthropic/hh-rlhf" else []
    path = place(name)
    if not os.path.isdir(path) or _data_files(path):
        return []
    return sorted(folder.name for folder in path.iterdir() if _data_files(folder))


def world_tables(name: str, objective: str, n_train: int | None, n_test: int | None, seed: int) -> list[Table]:
    """The splits of a world. They come in TRL's schema, with distinct prompts and without ties.

    Raises BadInput for an unknown world or objective, and if the world has too few prompts.
    """
    splits = world_pairs(name, objective, n_train=n_train, n_test=n_test, seed=seed)
    return [Table(f"world:{name} {split}", split, rows) for split, rows in zip(("train", "test"), splits, strict=True)]


def hub_tables(repo: str, folder: str | None, revision: str | None) -> tuple[list[Table], str | None]:
    """The splits of a repository, and the commit that they come from; None if the commit cannot be found out.

    Raises BadInput if the repository cannot be loaded or the cache has another commit than the one asked for.
    """
    loaded = _load(repo, folder, revision)
    tables = [Table(f"hub:{repo} {name}", _split_of(name), rows) for name, rows in loaded.items()]
    return tables, _commit(repo, revision, loaded)


def file_tables(name: str, folder: str | None) -> list[Table]:
    """One table for a file; one table for each data file of a folder.

    Raises BadInput if there is no such path, the folder has no data files or a file cannot be read.
    """
    path = place(name) / (folder or "")
    if not os.path.exists(path):
        raise BadInput(f"files:{name}: no such path; expected a file or a folder")
    files = _data_files(path) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"files:{name}: no data in this folder; expected {', '.join(SUFFIXES)}")
    return [Table(str(file), _split_of(file.name), read_rows(file)) for file in files]


def check_reach(source: str, revision: str | None = None, folder: str | None = None, here_only: bool = False) -> None:
    """Raises BadInput for a path that is not there and, unless `here_only`, for a hub source that is neither in reach
    nor in the hub's cache."""
    kind, name = parse_source(source)
    if kind == "files" and not os.path.exists(place(name)):
        raise BadInput(f"{source}: no such path; expected a file or a folder")
    if kind == "hub" and not here_only and not ask_hub_once():
        hub_tables(name, folder, revision)


def place(name: str) -> Path:
    """A path as a reader writes it: ~ is a home, and stays as it is where there is no such user."""
    return Path(os.path.expanduser(name))


def _split_of(name: str) -> str:
    return "test" if name.startswith(("test", "validation")) else "train"


def _data_files(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.is_file() and file.name.endswith(SUFFIXES)]


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl, .jsonl.gz, .json (a list) or .parquet file. Raises BadInput for anything else."""
    if not path.name.endswith(SUFFIXES):
        raise BadInput(f"{path}: unsupported extension; expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path).to_pylist()
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as text:
            if path.suffix == ".json":
                rows = parse_json(text.read(), str(path))
            else:
                lines = ((n, line) for n, line in enumerate(text, 1) if line.strip())
                rows = [parse_json(line, str(path), n) for n, line in lines]
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8; expected UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(f"{path}: truncated or corrupt; expected a gzip file") from None
    except pyarrow.ArrowException:
        raise BadInput(f"{path}: truncated or corrupt; expected a Parquet file") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or 'unreadable'}; expected a readable file") from None
    if not isinstance(rows, list):
        raise BadInput(f"{path}: holds a {type(rows).__name__}; expected a list of objects")
    for n, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadInput(f"{path}: row {n} is a {type(row).__name__}; expected an object")
    return rows


def _load(repo: str, folder: str | None, revision: str | None) -> datasets.DatasetDict:
    """Load from the hub or its cache. Only data files are read: `datasets` no longer runs the code of a repo."""
    where = f"hub:{repo}" + (f" at revision {revision}" if revision else "")
    ask_hub_once()
    try:
        return datasets.load_dataset(repo, data_dir=folder, revision=revision)
    except Exception as error:  # the hub's many errors become one line each, whatever their class
        if fault := disk_fault(str(error)):
            raise BadInput(f"{where}: {fault}") from None
        if isinstance(error, ConnectionError) or "find cache" in str(error):
            hint = "expected a network, or a copy in the cache and HF_HUB_OFFLINE=1"
            raise BadInput(f"{where}: the hub cannot be reached; {hint}") from None
        if "gated" in str(error).lower():
            hint = "expected that you accepted its terms and ran `hf auth login`"
            raise BadInput(f"{where}: the data set is gated; {hint}") from None
        if isinstance(error, FileNotFoundError | huggingface_hub.errors.HfHubHTTPError):
            raise BadInput(f"{where}: not found; expected a public repo and revision") from None
        name = type(error).__name__  # its text may quote rows
        raise BadInput(f"{where}: {name}; expected a data set that `datasets` loads") from None


def _commit(repo: str, revision: str | None, loaded: datasets.DatasetDict) -> str | None:
    """The commit of the loaded data. Their folder in the cache is named after it; otherwise the hub is asked.

    The check is there because `datasets`, if it has no network, takes the latest cached copy and ignores the revision
    that was asked for.
    """
    folders = {Path(file["filename"]).parent.name for s in loaded.values() for file in s.cache_files}
    commits = sorted(name for name in folders if re.fullmatch("[0-9a-f]{40}", name))
    if not commits:
        try:
            return huggingface_hub.dataset_info(repo, revision=revision, timeout=10).sha
        except Exception:  # unreachable: an unknown commit stays unknown
            return None
    if re.fullmatch("[0-9a-f]{40}", revision or "") and commits != [revision]:
        raise BadInput(f"hub:{repo}: the cache holds {commits[0]}; expected revision {revision}")
    return commits[0]
