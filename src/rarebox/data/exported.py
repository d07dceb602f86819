"""What a rarebox export says about its images and its label files have no field for."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rarebox.core.parsing import from_json
from rarebox.core.text import lines_of, read_text
from rarebox.data.disk import place_key
from rarebox.data.listings import EXPORT_MARK, Guess, Problem
from rarebox.data.narrow import Object, as_list, as_object, is_object
from rarebox.errors import UserError

INCOMPLETE = "incomplete.txt"
"""The file of an export that lists the images that are not fully labelled."""

LEVELS = 2
"""How many folders further up are searched for the export of an image."""


@dataclass(frozen=True)
class Exported:
    """The content of ``rarebox.json`` and ``incomplete.txt`` in a folder; empty if it is not an export.

    ``classes`` are the class names in their original order. ``images`` are the entries of the images by file name, and
    ``incomplete`` the names of those that are not fully labelled; in both, :func:`rarebox.data.disk.place_key` of them.
    """

    folder: Path
    classes: tuple[str, ...] = ()
    images: Mapping[str, Object] = field(default_factory=dict[str, Object])
    incomplete: Collection[str] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> "Exported":
        """Read both files, if they exist. Raises UserError if ``rarebox.json`` is there but damaged: without it, pseudo
        labels would count as a person's."""
        mark = _mark_of(folder / EXPORT_MARK)
        entries = as_object(mark.get("images")).items()
        images = {place_key(name): entry for name, entry in entries if is_object(entry)}
        return cls(folder, tuple(map(str, as_list(mark.get("classes")))), images, incomplete_in(folder))

    def __bool__(self) -> bool:
        return bool(self.images or self.incomplete)

    def is_complete(self, image: Path, problems: list[Problem]) -> bool | None:
        """Whether an image is fully labelled; None if this is not an export.

        An image that the export does not know, for example because another export was copied to the same folder, is
        not. It goes to ``problems``.
        """
        entry = self.images.get(place_key(image.name))
        if entry is None and self.images:
            what = (
                f"{self.folder / EXPORT_MARK} does not list it, so it may be partially labelled, and counts as such. "
                "If another export was copied over its own, its pseudo labels would count as a person's. Keep each "
                "export in its own folder."
            )
            problems.append(Problem("completeness unknown", str(image), what))
        if entry is None or place_key(image.name) in self.incomplete:
            return False if self else None
        return bool(entry.get("complete"))

    def lists(self, name: str) -> bool:
        """Whether the export has an image with that file name."""
        return place_key(name) in self.images

    def guesses(self, name: str, classes: Collection[str] | None = None) -> tuple[Guess, ...]:
        """The pseudo labels of the image with that file name. Lines that rarebox has not written are left out.

        ``classes`` are the names in the label files, if they list them. A class that is not among them was renamed.
        """
        found: list[Guess] = []
        for line in as_list(self.images.get(place_key(name), {}).get("pseudo")):
            with suppress(ValueError, IndexError):
                label, x, y, width, height = str(line).split()
                known = self.classes[int(label)]
                guessed = known if classes is None or known in classes else None
                found.append(Guess(guessed, float(x), float(y), float(width), float(height)))
        return tuple(found)


def _mark_of(file: Path) -> Object:
    try:
        content = from_json(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, UserError) as error:
        raise _damaged(file, error) from None
    if not is_object(content):
        raise _damaged(file, "it holds no object")
    return content


def _damaged(file: Path, error: object) -> UserError:
    return UserError(
        f"{file} cannot be read ({error}). It says which labels beside it are pseudo labels and which images are fully "
        "labelled. Copy it from the export again, or export again."
    )


class Exports:
    """The exports that images belong to. ``folder`` holds the label file that is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, Exported] = {}

    def of(self, image: Path) -> Exported:
        """The export of an image: that of the folder above its own, or of one further up that lists it, as after a
        split into ``images/train`` and ``images/val``; else that of the label file. Empty if there is none."""
        near = image.parent.parent
        return self._in(near) or self._listing(image.name, near.parents) or self._in(self._folder)

    def named(self, name: str) -> Exported:
        """The export of the image with that file name: that of the label file, or of a folder above that lists it."""
        return self._in(self._folder) or self._listing(name, self._folder.parents)

    def _in(self, folder: Path) -> Exported:
        if folder not in self._read:
            self._read[folder] = Exported.of(folder)
        return self._read[folder]

    def _listing(self, name: str, folders: Sequence[Path]) -> Exported:
        found = (self._in(folder) for folder in folders[:LEVELS])
        return next((one for one in found if one.lists(name)), Exported(self._folder))


def incomplete_in(folder: Path) -> Collection[str]:
    """The images that the ``incomplete.txt`` in a folder lists, as :func:`rarebox.data.disk.place_key`."""
    try:
        return frozenset(place_key(line.strip()) for line in lines_of(read_text(folder / INCOMPLETE)) if line.strip())
    except (OSError, UserError):
        return frozenset()
