"""Decoding of text files that people and other tools have written."""

import codecs
import re
from pathlib import Path

from rarebox.core.files import read_bytes
from rarebox.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, as it starts with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 photo``, ``2 photos``. ``many`` is the plural if it is not ``one`` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def encoding_of(start: bytes) -> str:
    """The encoding given by the byte-order mark at the start of a file; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def decode(content: bytes, where: str | Path) -> str:
    """Decode a file's content, without its byte-order mark. Raises `UserError` if it is not text."""
    encoding = encoding_of(content)
    name = encoding.removesuffix("-sig").upper()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"{error.reason} at byte {error.start}"
        raise UserError(f"{where}: this is not {name} text ({what}). Save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where}: this is not {name} text (it has zero bytes, as UTF-16 has). Save it as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a text, which end with LF, CRLF or CR.

    ``str.splitlines`` also splits at vertical tabs, form feeds, U+0085 and U+2028, which may be part of a name.
    """
    lines = re.split(r"\r\n?|\n", text)
    return lines if lines[-1] else lines[:-1]


def read_text(file: Path) -> str:
    """Read a text file in UTF-8 or the encoding of its byte-order mark.

    Raises ``OSError`` if it cannot be read and `UserError` if it is not text.
    """

    return decode(read_bytes(file), file)
