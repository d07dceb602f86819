"""The candidates of a folder of shards as one table."""

from pathlib import Path

from rarebox.core import parquet
from rarebox.types import Candidates, concatenate


def read_all(folder: Path) -> Candidates:
    """The candidates of all shards of a folder, in the order of their names."""
    return concatenate([Candidates(**parquet.read(file)) for file in sorted(folder.glob("shard_*.parquet"))])
