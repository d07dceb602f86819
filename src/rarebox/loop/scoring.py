"""Images become candidates: :func:`score_images`, and the engine ``local`` that scores shards with it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from rarebox import strategies
from rarebox.config import Settings
from rarebox.data.pictures import Pictures
from rarebox.detectors import Detector
from rarebox.detectors.detector import Scored
from rarebox.detectors.frozen import FrozenPictures
from rarebox.errors import UserError
from rarebox.loop.run import EngineProgress, Run, batches, load_detector, new_detector, views_of
from rarebox.pool import candidates as pool_file
from rarebox.pool.affine import Frame
from rarebox.pool.last import sketch
from rarebox.types import Candidates, ImageRecord, ImageScores, concatenate


def score_images(
    detector: Detector,
    pictures: Pictures,
    settings: Settings,
    cycle: int,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[Candidates, ImageScores]:
    """Return the candidates of the pictures and a row of scores for each picture, sorted by image id.

    A batch holds images of one shape, each with all its views. A GPU computes the next batch in the meantime.
    """
    found: list[tuple[Candidates, ImageScores]] = []
    kept = kept_features(settings)

    def queued() -> Iterator[tuple[list[int], list[list[Frame]], Callable[[], list[Scored]]]]:
        for rows, batch in pictures.in_batches(batches(pictures, settings.scoring.batch_size)):
            ids = [pictures.records[i].id for i in map(int, rows)]
            sizes = [detector.input_size(picture) for picture in batch]
            views = [views_of(settings, settings.scoring.views, cycle, *each) for each in zip(ids, sizes, strict=True)]
            frames = [detector.frames(picture, plan) for picture, plan in zip(batch, views, strict=True)]
            yield ids, frames, detector.queue_views(batch, views, features=bool(kept))

    for ids, frames, read in behind(queued(), detector.ahead):
        for image_id, of_views, (boxes, matched) in zip(ids, frames, read(), strict=True):
            candidates, scores = pool_file.score_image(
                image_id, boxes, of_views, settings.scoring, detector.num_classes, matched, settings.lowest_score
            )
            if kept == "sketch" and candidates.features is not None:
                candidates = replace(candidates, features=sketch(candidates.features))
            found.append((candidates, scores))
        report(len(found))
    found.sort(key=lambda one: one[1].image_id[0])
    return concatenate([c for c, _ in found]), concatenate([i for _, i in found])


def score_here(
    run: Run, cycle: int, shards: Sequence[Sequence[ImageRecord]], report: EngineProgress
) -> Iterator[tuple[int, Candidates, ImageScores]]:
    """The engine ``local``: score one shard after the other in this process."""
    detector, done = load_detector(run, cycle - 1), 0
    if isinstance(run.pool, FrozenPictures) and not detector.has_backbone_of(new_detector(run)):
        raise UserError(
            "training.freeze was switched on in the middle of the run: the previous cycle trained its backbone, so its "
            "model cannot use feature maps of the pretrained one. Set training.freeze to nothing, or start over in "
            "another folder"
        )
    for number, images in enumerate(shards):
        yield (
            number,
            *score_images(detector, run.pool.of(images), run.settings, cycle, lambda n, done=done: report(done + n)),
        )
        done += len(images)


T = TypeVar("T")


def behind(items: Iterable[T], by: int) -> Iterator[T]:
    """Yield the items in order, each after ``by`` further ones have been made."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > by:
            yield waiting.popleft()
    yield from waiting


def kept_features(settings: Settings) -> bool | Literal["sketch"]:
    """Whether the features of candidates are kept: whole for a strategy that needs them, and a sketch of them for the
    rule on near-duplicates."""
    strategy = settings.selection.strategy
    if "features" in strategies.NEEDS.get(strategy, ()):
        return True
    return "sketch" if strategy in strategies.BOX and settings.selection.duplicate_cosine < 1 else False
