"""Shared fixtures. They import torch late, because the process that only starts the workers reads this file, too."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from uuid import uuid4

import hypothesis
import numpy as np
import pytest

from rarebox.types import Picture, Targets

if TYPE_CHECKING:
    from rarebox.detectors import TorchDetector

os.environ["RAREBOX_OFFLINE"] = "1"  # for the processes that tests start, too

SERVER = "RAREBOX_POSTGRESQL"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test run first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store can be created: a file, or a new schema on a PostgreSQL server if one is named."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.sqlite")
        return
    if SERVER not in os.environ:
        pytest.skip(f"{SERVER} names no server, such as postgresql+psycopg://postgres@localhost/postgres")
    from sqlalchemy import create_engine

    name = f"rarebox_{uuid4().hex[:12]}"
    server = create_engine(os.environ[SERVER])
    with server.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield f"{os.environ[SERVER]}?options=-csearch_path%3D{name}"
    with server.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    server.dispose()


# The same examples every time, on fast and slow machines.
hypothesis.settings.register_profile("rarebox", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rarebox")


@pytest.fixture(scope="session")
def retinanet() -> "TorchDetector":
    """A small RetinaNet that no test may change."""
    from tests.small import make

    return make("retinanet")


@pytest.fixture(scope="session")
def faster_rcnn() -> "TorchDetector":
    """A small Faster R-CNN that no test may change."""
    from tests.small import make

    return make("faster_rcnn")


@pytest.fixture(params=["retinanet", "faster_rcnn"])
def detector(request: pytest.FixtureRequest) -> "TorchDetector":
    """Each of the two small detectors in turn; no test may change them."""
    found: TorchDetector = request.getfixturevalue(request.param)
    found.network.zero_grad(set_to_none=True)
    return found


@pytest.fixture(scope="session")
def make_detector() -> "Callable[..., TorchDetector]":
    """A function that makes a small detector which a test may change."""
    from tests.small import make

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """Three noisy pictures: one wide, one tall, and one that is half as large as its original."""
    dice = np.random.default_rng(1)

    def noise(height: int, width: int) -> np.ndarray:
        coarse = dice.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1)

    return [Picture(noise(64, 96), 96, 64), Picture(noise(80, 64), 64, 80), Picture(noise(64, 64), 128, 128)]


@pytest.fixture(scope="session")
def targets() -> list[Targets]:
    """Objects of those pictures: two boxes, one box, none."""
    return [
        Targets.of([[4, 6, 40, 50], [50, 20, 90, 44]], [2, 0]),
        Targets.of([[10, 10, 50, 70]], [1]),
        Targets.of([], []),
    ]


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """Detectors of this module get a small body. Do not use it in modules that use this file's detectors."""
    from tests import tiny

    with tiny.small_network():
        yield


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to fetch a file fails at once, as on a machine without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.delenv("RAREBOX_OFFLINE")
    monkeypatch.setattr("rarebox.detectors.weights.urlopen", refuse)


@pytest.fixture(scope="session")
def stock_of() -> "Callable[[TorchDetector], Any]":
    """A function that makes torchvision's own network of a detector."""
    from tests.small import torchvisions_own

    return torchvisions_own
