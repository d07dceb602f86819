"""Tables of NumPy columns as Parquet files, written atomically."""

# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarebox.core import files

Column = NDArray[Any]
"""A column of any data type: (T,) or (T, width)."""


def write(file: Path, columns: Mapping[str, Column]) -> None:
    """Write columns of equal length to a Parquet file, creating its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({name: _to_arrow(column) for name, column in columns.items()}), content)
    files.write_bytes(file, content.getvalue().to_pybytes())


def is_whole(file: Path) -> bool:
    """Whether a file exists and has its footer, which :func:`write` writes last."""
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    return True


def read(file: Path) -> dict[str, Column]:
    """Read a table that :func:`write` wrote, by column name. Raises Damaged if it is missing or unreadable."""
    with _damage_explained(file):
        table = pq.read_table(file)
    return {name: _to_numpy(table[name].combine_chunks()) for name in table.column_names}


def batches(file: Path, columns: Collection[str], rows: int) -> Iterator[dict[str, Column]]:
    """Read some ``columns`` of a table, as far as it has them, in pieces of at most ``rows`` rows. Raises Damaged."""
    with _damage_explained(file), pq.ParquetFile(file) as table:
        there = [name for name in table.schema_arrow.names if name in columns]
        for batch in table.iter_batches(rows, columns=there):
            yield {name: _to_numpy(batch[name]) for name in there}


@contextmanager
def _damage_explained(file: Path) -> Generator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise files.damaged(file, error) from error


def _to_arrow(column: Column) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(column).ravel()), column.shape[1])


def _to_numpy(column: pa.Array) -> Column:

    if pa.types.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    return column.to_numpy(zero_copy_only=False)
