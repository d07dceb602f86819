"""What a run ran on: versions, processor, accelerator."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

import rarebox

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "sqlalchemy", "pyarrow", "hotcoco")


def describe() -> dict[str, Any]:
    """Names and versions, as saved with each run."""
    return {
        "rarebox": rarebox.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in LIBRARIES},
    }


def compute_with(threads: int) -> None:
    """Let what the calling thread does of torch run on so many threads."""
    torch.set_num_threads(threads)
