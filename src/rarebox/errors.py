"""Errors that are the user's to mend: the command line prints their message, without a traceback, and exits with 2."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LOGIN = re.compile(r"(?<=://)[^/?#\s@]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def presentable(text: str) -> str:
    """A text as a person may see it: without the passwords and signatures in its URLs, without control characters.

    ``https://user:secret@host/a.jpg?signature=…`` loses what stands before the ``@`` and after the ``?``. Control
    characters, which a terminal would obey, and halves of characters become escapes such as ``\\x1b``.
    """
    text = _QUERY.sub(r"\1…", _LOGIN.sub("", text))
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class UserError(Exception):
    """Something the person at the keyboard can put right; the message says what came, what was wanted, what to do."""

    def __str__(self) -> str:
        return presentable(super().__str__())


class Busy(UserError):
    """Another process is at work there."""


class Unavailable(UserError):
    """The database cannot do it just now (disk full, locked, gone): nothing of it was done, trying again may help."""


class Damaged(UserError):
    """A file that rarebox wrote is gone or cannot be read; what made it can make it again."""


class TrainingDiverged(UserError):
    """The loss stopped being a finite number."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name nobody knows, with the nearest known one, and the list unless that is long."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = "" if near and len(known) > 20 else f" (known: {', '.join(known)})"
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")
