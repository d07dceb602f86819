"""Errors that the user can fix. The command line prints the message without a traceback and exits with status 2."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LOGIN = re.compile(r"(?<=://)[^/?#\s@]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def presentable(text: str) -> str:
    """Make a text safe to show: remove passwords and signatures from URLs, and escape control characters.

    ``https://user:secret@host/a.jpg?signature=…`` loses the text before the ``@`` and after the ``?``. Control
    characters, which a terminal would interpret, marks of the direction of text and lone surrogates become escapes
    such as ``\\x1b``.
    """
    text = _QUERY.sub(r"\1…", _LOGIN.sub("", text))
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class UserError(Exception):
    """An error that the user can fix. The message says what was found, what was expected and what to do."""

    def __str__(self) -> str:
        return presentable(super().__str__())


class Busy(UserError):
    """Another process holds the lock."""


class Unavailable(UserError):
    """The database cannot be used now (disk full, locked, removed). Nothing was written; a retry may succeed."""


class Damaged(UserError):
    """A file that rarebox wrote is missing or cannot be read. The step that wrote it can write it again."""


class TrainingDiverged(UserError):
    """The loss is no longer finite."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for an unknown name. It suggests the nearest known name and lists all of them unless they are many."""

    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = "" if near and len(known) > 20 else f" (known: {', '.join(known)})"
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")
