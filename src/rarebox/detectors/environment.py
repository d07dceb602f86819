"""The software and hardware of a run: versions, CPU cores, accelerator."""

import os
import platform
from importlib.metadata import version

import torch

import rarebox

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "sqlalchemy", "pyarrow", "hotcoco")


def describe() -> dict[str, str | int | None]:
    """Versions and hardware, as saved with each run."""
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
    """Set the number of threads that torch uses for work of the calling thread."""
    torch.set_num_threads(threads)
