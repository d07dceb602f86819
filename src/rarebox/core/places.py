"""The cache folders of rarebox and of the libraries that it uses."""

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder for generated and downloaded data sets: ``$RAREBOX_CACHE``, or ``rarebox`` in the user's cache."""
    cache = _user_cache()
    cache = cache if cache.is_absolute() else _temporary() / ".cache"
    return Path(os.environ.get("RAREBOX_CACHE") or cache / "rarebox")


def settle() -> str:
    """Make caches writable for a user whose home folder is missing or read-only.

    If the usual cache cannot be written, this changes the environment of this process and of those that it starts,
    and returns a sentence that says so. Otherwise it returns an empty string.
    """
    cache = _user_cache()
    if _is_writable(cache):
        return ""
    instead = _temporary()
    if os.path.isdir(cache):  # keep HOME: weights in the image of a container must still be found
        os.environ.setdefault("RAREBOX_CACHE", str(instead / "rarebox"))
        os.environ.setdefault("MPLCONFIGDIR", str(instead / "matplotlib"))
    else:
        os.environ["HOME"] = str(instead)
    what = f"{cache} cannot be written" if cache.is_absolute() else "you have no home folder"
    return f"{what}, so caches are kept in {instead}; to keep them elsewhere, set HOME to another folder"


def _user_cache() -> Path:
    """``.cache`` in the user's home folder; a relative path if the home folder is unknown."""
    return Path(os.path.expanduser("~")) / ".cache"


def _is_writable(folder: Path) -> bool:
    """Whether a folder is writable or can be created."""
    if not folder.is_absolute():
        return False
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A temporary folder of this user, the same one each time."""
    if not hasattr(os, "getuid"):  # on Windows each user has a temporary folder
        return Path(tempfile.gettempdir()) / "rarebox"
    folder = Path(tempfile.gettempdir()) / f"rarebox-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="rarebox-"))  # another user owns a folder of that name
