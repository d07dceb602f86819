"""How files of other tools name an image, and which one they mean."""

from typing import Generic, TypeVar

from rarebox.errors import UserError

T = TypeVar("T")


class ByName(Generic[T]):
    """Things by a path, found again by as much of its end as tells them apart."""

    def __init__(self) -> None:
        self._alike: dict[str, list[tuple[str, T]]] = {}

    def add(self, path: str, value: T) -> None:
        """Make a thing known by its path."""
        self._alike.setdefault(_file_name(path), []).append((f"/{_slashes(path)}", value))

    def find(self, name: str) -> T | None:
        """What has that path, or one that ends so; None if nothing has. UserError where several end alike."""
        wanted = f"/{_slashes(name)}"
        alike = [(path, value) for path, value in self._alike.get(_file_name(name), ()) if _ends_alike(path, wanted)]
        if len({path for path, _ in alike}) > 1:
            raise UserError(
                f"{name!r} may be {alike[0][0][1:]} or {alike[1][0][1:]}; write as much of the path as tells them apart"
            )
        return alike[0][1] if alike else None


def _slashes(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _file_name(path: str) -> str:
    return _slashes(path).rsplit("/", 1)[-1]


def _ends_alike(path: str, wanted: str) -> bool:
    """Whether a path ends as is wanted; or, if it is not from the root, is itself the end of what is wanted."""
    return path.endswith(wanted) or (not path.startswith("//") and wanted.endswith(path))
