"""XML from files and requests, parsed within bounds."""

import xml.etree.ElementTree as ET
from typing import Any
from xml.parsers import expat


def from_xml(content: str | bytes) -> ET.Element:
    """The root of an XML text. Raises ``ET.ParseError``, or ``ValueError`` for a document type or a strange encoding.

    Elements have their local names, without a namespace.

    A document type may declare entities, which unfold to any size; it is refused before anything is parsed.
    """
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        guard.Parse(content, True)
    except expat.ExpatError:
        pass  # the other parser says it better
    except LookupError as error:
        raise ValueError(f"its encoding is not known ({error}); save it as UTF-8") from None
    root = ET.fromstring(content)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _refuse_doctype(*_: Any) -> None:
    raise ValueError("it declares a DOCTYPE or entities, which can exhaust the memory; remove these lines")
