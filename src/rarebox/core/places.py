"""Where files are kept that no command names: the caches of rarebox and of the libraries that it uses."""

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where made and fetched data sets are kept: ``$RAREBOX_CACHE``, or ``rarebox`` in the user's cache folder."""
    cache = _user_cache()
    cache = cache if cache.is_absolute() else _temporary() / ".cache"
    return Path(os.environ.get("RAREBOX_CACHE") or cache / "rarebox")


def settle() -> str:
    """Make caches writable for a user without a home, or with one that is read-only.

    Changes the environment of this process and of those that it starts, where a cache could not be written otherwise.
    Returns a sentence that says so, or an empty string.
    """
    cache = _user_cache()
    if _is_writable(cache):
        return ""
    instead = _temporary()
    if os.path.isdir(cache):  # what a container's image has in it, such as weights, is still to be found
        os.environ.setdefault("RAREBOX_CACHE", str(instead / "rarebox"))
        os.environ.setdefault("MPLCONFIGDIR", str(instead / "matplotlib"))
    else:
        os.environ["HOME"] = str(instead)
    what = f"{cache} cannot be written" if cache.is_absolute() else "you have no home folder"
    return f"{what}, so caches are kept in {instead}; set HOME to a folder of yours to keep them there"


def _user_cache() -> Path:
    """``.cache`` in the user's home; a relative path where nobody knows the home."""
    return Path(os.path.expanduser("~")) / ".cache"


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be written in, or made."""
    if not folder.is_absolute():
        return False
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A folder of this user among the temporary files, the same one each time."""
    if not hasattr(os, "getuid"):  # on Windows each user has temporary files of their own
        return Path(tempfile.gettempdir()) / "rarebox"
    folder = Path(tempfile.gettempdir()) / f"rarebox-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="rarebox-"))  # somebody else's folder has that name
