"""The content of photos, by hashes of their files.

As in the index of Git, a file is hashed once, and again only when its size, times or inode have changed.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rarebox.core.files import Stat, open_regular, read_json, stat_of, write_text
from rarebox.core.parsing import from_json
from rarebox.core.progress import Progress, silent
from rarebox.core.text import read_text
from rarebox.data.disk import place_key
from rarebox.data.images import readers
from rarebox.data.listings import EXPORT_MARK, Listing
from rarebox.data.narrow import as_object, is_object
from rarebox.data.remote import is_url
from rarebox.errors import Damaged, UserError
from rarebox.types import ImageRecord

JUST_NOW = 2 * 10**9
"""Nanoseconds. A file that changed this recently may change again without a new time stamp, so its hash is not kept."""

QUICK = 1
"""Seconds of work before progress is reported."""


class Contents:
    """The SHA-256 of files, by path, with what each file looked like when it was hashed.

    :meth:`save` writes them to ``file``. It may be deleted: the hashes are then computed again. Safe to use from
    several threads.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._known, self._saved = file, dict[str, tuple[Stat, str]](), True
        if file and file.exists():
            with suppress(Damaged, KeyError, TypeError, ValueError):
                self._known = {
                    path: (_four(stat), str(content)) for path, (stat, content) in read_json(file, dict).items()
                }

    def of(self, path: str | Path) -> str | None:
        """The hash of a file's content. None for a file that is missing, unreadable or not a regular file."""
        name = os.path.abspath(path)
        if self._is_current(name):
            return self._known[name][1]
        try:
            with open_regular(name) as opened:
                before = stat_of(os.fstat(opened.fileno()))
                content = hashlib.file_digest(opened, "sha256").hexdigest()
                after = stat_of(os.fstat(opened.fileno()))
        except OSError:
            return None
        if before == after and all(abs(time.time_ns() - at) > JUST_NOW for at in after[1:3]):
            self._known[name], self._saved = (after, content), False
        return content

    def read(self, paths: Iterable[str], progress: Progress = silent) -> None:
        """Hash the files that have changed, several at a time. Progress is reported only for long work."""
        start = time.monotonic()
        changed = [path for path in dict.fromkeys(map(os.path.abspath, paths)) if not self._is_current(path)]
        with ThreadPoolExecutor(readers(far=False)) as pool:
            for done, _ in enumerate(pool.map(self.of, changed), start=1):
                if time.monotonic() - start > QUICK:
                    progress("comparing photos", done, len(changed), "photos")

    def save(self) -> None:
        """Save the hashes of the files that still exist. Skipped if the disk is full or read-only."""
        if self._file is None or self._saved:
            return
        known = {path: entry for path, entry in self._known.copy().items() if os.path.exists(path)}
        with suppress(OSError):
            write_text(self._file, json.dumps(known))
            self._saved = True

    def _is_current(self, path: str) -> bool:
        known = self._known.get(path)
        try:
            return known is not None and known[0] == stat_of(os.stat(path))
        except (OSError, ValueError):
            return False


def same_photos(files: Iterable[str], images: Iterable[ImageRecord]) -> dict[str, int]:
    """The id of the image that each file is: by a link, or by being the only one with its content.

    Names without a file and URLs are left out.
    """
    local = [image for image in images if not is_url(image.path) and os.path.isfile(image.path)]
    places = {os.path.realpath(image.path): image.id for image in local}
    of_size, contents = defaultdict[int, list[ImageRecord]](list), Contents()
    for image in local:
        of_size[os.stat(image.path).st_size].append(image)
    found: dict[str, int] = {}
    for file in files:
        if is_url(file) or not os.path.isfile(file):
            continue
        alike = of_size[os.stat(file).st_size] if os.path.realpath(file) not in places else []
        same = [image.id for image in alike if contents.of(image.path) == contents.of(file) is not None]
        if (there := places.get(os.path.realpath(file), same[0] if len(same) == 1 else None)) is not None:
            found[file] = there
    return found


def _four(values: Sequence[int]) -> Stat:
    size, modified, changed, inode = map(int, values)
    return size, modified, changed, inode


def as_labelled(listing: Listing, root: Path) -> Listing:
    """The listing with the content of the photos that were labelled, where an export names it.

    An image belongs to the export in the folder above its own, or else to that in the folder of ``root``.
    """
    here = root if os.path.isdir(root) else root.parent
    exports = dict[Path, dict[str, str]]()

    def contents_in(folder: Path) -> dict[str, str]:
        if folder not in exports:
            exports[folder] = _exported(folder)
        return exports[folder]

    def content_of(path: Path | str) -> str:
        place = Path(path)
        return (contents_in(place.parent.parent) or contents_in(here)).get(place_key(place.name), "")

    return replace(listing, images=[replace(image, content=content_of(image.path)) for image in listing.images])


def _exported(folder: Path) -> dict[str, str]:
    """File name -> hash of the labelled photo, of an export; empty for any other folder."""
    try:
        entries = as_object(as_object(from_json(read_text(folder / EXPORT_MARK))).get("images"))
    except (OSError, ValueError, UserError):
        return {}
    return {
        place_key(name): str(entry["photo"]) for name, entry in entries.items() if is_object(entry) and "photo" in entry
    }
