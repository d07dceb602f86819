"""Text that people and other tools have written: how its bytes become characters, decided in one place."""

import codecs
from pathlib import Path

from rarebox.core.files import read_bytes
from rarebox.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 photo``, ``2 photos``; ``many`` where it is not ``one`` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def encoding_of(start: bytes) -> str:
    """The encoding that a byte-order mark at the start of a file tells; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def decode(content: bytes, where: str | Path) -> str:
    """The characters of a file, without its byte-order mark. Raises `UserError` if they cannot be told."""
    encoding = encoding_of(content)
    name = encoding.removesuffix("-sig").upper()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = f"{error.reason} at byte {error.start}"
        raise UserError(f"{where}: this is not {name} text ({what}); save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{where}: this is not {name} text (it holds zero bytes, as UTF-16 does); save it as UTF-8")
    return text


def read_text(file: Path) -> str:
    """The text of a file: UTF-8, or what its byte-order mark says.

    Raises ``OSError`` for a file that cannot be read, `UserError` for one that is not text.
    """
    return decode(read_bytes(file), file)
