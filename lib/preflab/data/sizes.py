"""How much text files of data hold once they are unpacked, counted without unpacking more than a piece at a time.

A few kilobytes of gzip or Parquet may hold gigabytes. `sources` reads a file whole, so this looks first.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
from pyarrow import compute

from preflab.data.sources import SUFFIXES, parse_source, place
from preflab.errors import BadInput, shown

LARGEST = 2**30  # bytes of text in a file; as rows in memory it takes a few times as much
LONGEST = 2**26  # bytes of a line, or of a value in Parquet
MOST_VALUES = 2 * 10**7  # of a Parquet file, whatever they are
PIECE = 2**20  # bytes that are read together


def check_sizes(source: str, folder: str | None = None) -> None:
    """Raises BadInput for a file of a files: source, or of a sub-folder of it, that holds more than is read.

    One that is not there, or is malformed, is for its reader to tell.
    """
    kind, name = parse_source(source)
    path = place(name) / (folder or "")
    for file in sorted(path.iterdir()) if os.path.isdir(path) else [path]:
        if kind == "files" and os.path.isfile(file) and file.name.endswith(SUFFIXES):
            _check_parquet(file) if file.suffix == ".parquet" else _check_text(file)


def _check_text(file: Path) -> None:
    """Of a .json file the whole is one value, so its lines do not count."""
    held = line = 0
    for piece in _pieces(file):
        held += len(piece)
        end = piece.find(b"\n")
        line += len(piece) if end < 0 else end
        _check(file, "text", held, LARGEST)
        if file.suffix != ".json":
            _check(file, "a line", line, LONGEST)
        line = line if end < 0 else len(piece) - 1 - piece.rfind(b"\n")


def _pieces(file: Path) -> Iterator[bytes]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as content:
            while piece := content.read(PIECE):
                yield piece
    except (OSError, EOFError, zlib.error):
        return


def _check_parquet(file: Path) -> None:
    """A text that comes a million times is stored once. So what is added up is how long all values would be."""
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        about, schema = parquet.metadata, [parquet.schema.column(c) for c in range(len(parquet.schema))]
        parts = [[about.row_group(g).column(c) for c in range(len(schema))] for g in range(about.num_row_groups)]
        values = [sum(part[c].num_values for part in parts) for c in range(len(schema))]
        _check(file, "pages", sum(column.total_uncompressed_size for part in parts for column in part), LARGEST)
        _check(file, "data", max(about.num_rows, sum(values)), MOST_VALUES, "values")
        held = sum(n * column.length for n, column in zip(values, schema, strict=True))  # of values of one fixed length
        for name in [column.path for column in schema if column.physical_type == "BYTE_ARRAY"]:
            for length, times in _lengths(file, name):
                _check(file, "a value", compute.max(length).as_py() or 0, LONGEST)
                held += compute.sum(compute.multiply(length, times)).as_py() or 0
                _check(file, "text", held, LARGEST)
        _check(file, "text", held, LARGEST)
        for field in parquet.schema_arrow:
            if pyarrow.types.is_temporal(field.type):
                _check_dates(file, parquet.read(columns=[field.name]).column(0), field.name)
    except (pyarrow.ArrowException, OSError):
        return


def _check_dates(file: Path, column: pyarrow.ChunkedArray, name: str) -> None:
    """Arrow holds years that Python has not."""
    try:
        column.to_pylist()
    except (OverflowError, ValueError):
        raise BadInput(f"{file}: column {shown(name)} has dates out of range; expected years 1 to 9999") from None


def _lengths(file: Path, column: str) -> Iterator[tuple[pyarrow.Array, pyarrow.Array]]:
    """The lengths of the different texts of a column, and how often each comes, part by part of the file."""
    parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=[column])
    for part in range(parquet.num_row_groups):
        for array in parquet.read_row_group(part, columns=[column]).column(0).chunks:
            while pyarrow.types.is_nested(array.type):  # with one leaf, what is nested is a chain
                array = array.field(0) if pyarrow.types.is_struct(array.type) else array.flatten()
            if pyarrow.types.is_dictionary(array.type):  # else numbers that are stored as bytes
                counted = array.indices.drop_null().value_counts()
                lengths = compute.binary_length(array.dictionary).take(counted.field("values"))
                yield lengths.cast(pyarrow.int64()), counted.field("counts")


def _check(file: Path, what: str, held: int, most: int, unit: str = "bytes") -> None:
    if held > most:
        raise BadInput(f"{file}: {what} of more than {most:,} {unit}; expected a smaller file, or several")
