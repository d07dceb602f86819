"""Which photo of a store another tool means."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rarebox.data.export import sent_as
from rarebox.data.images import SUFFIXES
from rarebox.data.naming import ByName, file_names
from rarebox.data.review import Returned
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.project.exchange.known import Known
from rarebox.types import ImageRecord


class Photos:
    """The photos of a store by their current and former names."""

    def __init__(self, store: Store) -> None:
        self._paths = store.image_paths()
        self._by_name = ByName[int]()
        for image_id, paths in self._paths.items():
            self._by_name.add(paths[-1], image_id)

    @property
    def folders(self) -> set[str]:
        """The names of all folders above the photos, current and former."""
        plain = (path.replace("\\", "/") for paths in self._paths.values() for path in paths)
        return {part for path in plain for part in path.split("/")[:-1] if part}

    def named(self, name: str) -> int | None:
        """The id of the photo that another tool means by a name. UserError if it fits several."""
        return self._by_name.match(name)

    def agree(self, image_id: int, name: str) -> bool:
        """Whether the photo with this id has the name in another tool, or had it when it was sent there."""
        own = ByName[int]()
        for path in self._paths.get(image_id, ()):
            (file,) = file_names([(image_id, path)], SUFFIXES)
            stem, _, suffix = file.rpartition(".")
            # `data.export` tells two of one name apart by a number, written as often as it takes
            for alike in (path, file, *(f"{stem}{f'-{image_id}' * times}.{suffix}" for times in (1, 2, 3))):
                own.add(alike, image_id)
        try:
            return own.match(name) is not None
        except UserError:  # several of its names fit
            return True


def located(returned: Sequence[Returned], known: Known, photos: Photos) -> list[tuple[Returned, ImageRecord]]:
    """Each with its image. UserError names the first of those that are unknown, and how many there are.

    If one number does not fit the name beside it, the file is another project's. Then no number of images and
    questions in it means anything here, and names alone tell which photo is meant. If only names of our export are in
    the file, and one that no photo has, they are meant as that export means them. CVAT may add one folder to all names.
    """
    numbered = any(one.image_id is not None for one in returned)
    if any(one.image_id is not None and not photos.agree(one.image_id, one.image) for one in returned):
        returned = [_without_numbers(one) for one in returned]
    sent = sent_as(known.images.values()) if any(one.image_id is None for one in returned) else {}
    if not numbered:
        returned = _without_folder(returned, sent, photos)
    names = {one.image for one in returned}
    made = (
        file
        for file, i in sent.items()
        if file in names and file_names([(i, known.images[i].path)], SUFFIXES) != [file]
    )
    ours = names <= sent.keys() and any(made)
    located = [(one, _find(one, known, photos, sent, ours)) for one in returned]
    unknown = [one for one, record in located if record is None]
    if unknown:
        more = f", and {len(unknown) - 1} more of {len(returned)} are not" if len(unknown) > 1 else ""
        raise UserError(
            f"{unknown[0].where}: the image {unknown[0].image!r} is not in the store{more}. Is this the file of "
            "another project?"
        )
    pairs = [(one, record) for one, record in located if record is not None]
    seen: dict[int, Returned] = {}
    for one, record in pairs:
        if record.id in seen:
            raise UserError(f"{one.where}: this image came already, in {seen[record.id].where}; import them one by one")
        seen[record.id] = one
    return pairs


def _without_numbers(one: Returned) -> Returned:
    regions = tuple(region._replace(query=None) for region in one.regions)
    return replace(one, image_id=None, queries=(), regions=regions)


def _without_folder(returned: Sequence[Returned], sent: Mapping[str, int], photos: Photos) -> Sequence[Returned]:
    """The same with bare names, if all are names of our export in one folder that is no folder of the photos."""
    names = [one.image.replace("\\", "/").rpartition("/") for one in returned]
    folders = {folder for folder, _, _ in names}
    if (
        len(folders) != 1
        or photos.folders & set(folders.pop().split("/"))
        or any(file not in sent for *_, file in names)
    ):
        return returned
    return [replace(one, image=file) for one, (*_, file) in zip(returned, names, strict=True)]


def _find(one: Returned, known: Known, photos: Photos, sent: Mapping[str, int], ours: bool) -> ImageRecord | None:
    """The image that is meant. ``sent`` are the names in an export of ours; ``ours``: the file is one for certain."""
    if one.image_id is not None:
        return known.images.get(one.image_id)
    there = sent.get(one.image, -1)
    if ours or known.queries.get(there, {}).keys() & {*one.queries}:
        return known.images[there]
    image_id = photos.named(one.image)
    return None if image_id is None else known.images.get(image_id)
