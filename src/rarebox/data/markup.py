"""XML from files and requests, parsed within bounds."""

import xml.etree.ElementTree as ET
from xml.parsers import expat


def from_xml(content: str | bytes) -> ET.Element:
    """The root of an XML text, whose elements have their local names, without a namespace.

    Raises ``ET.ParseError``, or ``ValueError`` for a document type or an unknown encoding. A document type may declare
    entities, which expand to any size, so it is refused before anything is parsed.
    """
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        guard.Parse(content, True)
    except expat.ExpatError:
        pass  # ElementTree's message is clearer
    except LookupError as error:
        raise ValueError(f"its encoding is unknown ({error}). Save it as UTF-8") from None
    root = ET.fromstring(content)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it declares a DOCTYPE or entities, which can exhaust the memory. Remove these lines")
