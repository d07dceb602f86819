"""Models of the library ``transformers``, in a folder or on the Hugging Face Hub."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download

from rarebox.core.files import read_json
from rarebox.detectors.weights import OFFLINE, WeightsUnavailable

ABOUT, WEIGHTS = "config.json", "model.safetensors"
"""The two files of a model."""


def url_of(name: str) -> str:
    """The URL of the weights of a model on the Hub."""
    return f"https://huggingface.co/{name}/resolve/main/{WEIGHTS}"


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model of that library."""
    return (folder / ABOUT).is_file() and (folder / WEIGHTS).is_file()


def classes_of(folder: Path) -> tuple[str, ...]:
    """The names of a model's classes, in the order of their rows; empty if it names none. Raises Damaged."""
    names = read_json(folder / ABOUT, dict).get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def copy_of(name: str) -> Path:
    """The folder of a copy of a model on the Hub, ``owner/model``, which is downloaded if there is none yet.

    Raises WeightsUnavailable, which says how to get the files.
    """
    offline = bool(os.environ.get(OFFLINE))
    reason = f"{OFFLINE} is set" if offline else f"it has no {ABOUT} and {WEIGHTS}"
    # A local copy must not change in the middle of a run.
    for here_only in (True,) if offline else (True, False):
        try:
            files = [ABOUT, WEIGHTS]
            folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=here_only, etag_timeout=5))
        except (OSError, ValueError) as error:
            reason = reason if here_only else str(error).strip().split("\n")[0].rstrip(".")
        else:
            if is_model(folder):
                return folder
    raise WeightsUnavailable(
        f"the model {name} is not on this machine and cannot be downloaded: {reason}. On a machine with a network run "
        f"'hf download {name} --local-dir FOLDER', copy the folder here, and name it with --weights FOLDER"
    )
