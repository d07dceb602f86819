"""The initial weights of a run or project: decided once, recorded in ``start.json``, the same in every cycle."""

from dataclasses import asdict, fields

from rarebox.config import Settings
from rarebox.core.files import write_json
from rarebox.core.progress import Progress
from rarebox.detectors import start
from rarebox.detectors.start import Start
from rarebox.loop.run_folder import RunFolder


def begun(folder: RunFolder, settings: Settings, progress: Progress) -> tuple[Settings, str]:
    """The settings with the start in place of ``auto``, and a note on what is missing for a better one.

    The first call decides and records it. Later calls check that the file is the same; a file that has appeared since
    has no effect. If the settings name another start, it replaces the recorded one. Raises UserError if the file has
    changed.
    """
    before, now = folder.read_start(), folder.with_start(settings).detector
    if before and (before["backbone"], before["weights"]) == (now.backbone, now.weights):
        chosen = Start(*(before[field.name] for field in fields(Start)))
        start.verify(chosen, settings.detector, progress)
    else:
        chosen = start.choose(settings.detector, progress)
        asked = {"asked_backbone": settings.detector.backbone, "asked_weights": settings.detector.weights}
        write_json(folder.start, {**asdict(chosen), **asked})
    return settings.model_copy(update={"detector": chosen.of(settings.detector)}), chosen.note
