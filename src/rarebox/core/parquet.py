"""Tables of NumPy columns as Parquet files, written whole or not at all."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarebox.core import files


def write(file: Path, columns: Mapping[str, NDArray]) -> None:
    """Columns (T,) or (T, width) -> one Parquet file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({name: _to_arrow(column) for name, column in columns.items()}), content)
    files.write_bytes(file, content.getvalue().to_pybytes())


def is_whole(file: Path) -> bool:
    """Whether a file is there and has its end, which :func:`write` writes last."""
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    return True


def read(file: Path) -> dict[str, NDArray]:
    """Read what :func:`write` wrote, by column name; Damaged if it is gone or cannot be read."""
    with _damage_explained(file):
        table = pq.read_table(file)
    return {name: _to_numpy(table[name].combine_chunks()) for name in table.column_names}


def batches(file: Path, columns: Collection[str], rows: int) -> Iterator[dict[str, NDArray]]:
    """The same in pieces of at most ``rows`` rows, and only those of the ``columns`` that the file has."""
    with _damage_explained(file), pq.ParquetFile(file) as table:
        there = [name for name in table.schema_arrow.names if name in columns]
        for batch in table.iter_batches(rows, columns=there):
            yield {name: _to_numpy(batch[name]) for name in there}


@contextmanager
def _damage_explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise files.damaged(file, error) from error


def _to_arrow(column: NDArray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(column).ravel()), column.shape[1])


def _to_numpy(column: pa.Array) -> NDArray:
    if pa.types.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    return column.to_numpy(zero_copy_only=False)
