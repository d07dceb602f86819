"""Label formats that rarebox does not read, recognised only to say how to convert them."""

import os
from pathlib import Path

from rarebox.data.disk import searchable

_FORMS = (
    ('"_via_img_metadata"', "VIA", "In VIA choose Annotation, then Export Annotations (COCO format)."),
    ('"shape_attributes"', "VIA", "Open it in VIA and choose Annotation, then Export Annotations (COCO format)."),
    ("region_shape_attributes", "VIA", "Open it in VIA and choose Annotation, then Export Annotations (COCO format)."),
    ('"imagePath"', "LabelMe", "Convert the folder to COCO, for example with labelme2coco."),
    (
        '"completed_by"',
        "Label Studio",
        "Import it with rarebox import PROJECT FILE --format labelstudio, or export it as COCO.",
    ),
    ('"classTitle"', "Supervisely", "Export the project as COCO with the Supervisely app Export to COCO."),
)
"""(words in a file, the tool that writes them, how to get COCO out of it)"""

MOST_FILES = 20
"""The most files of a folder that are searched."""


def advice(path: Path) -> str:
    """Which tool has written a file, or the JSON and CSV files of a folder, and what to do; empty if unknown."""
    inside = (p for pattern in _PATTERNS for p in sorted(path.glob(pattern))[:MOST_FILES])
    files = [path] if os.path.isfile(path) else inside
    return next((text for file in files if (text := _advice_on(file))), "")


_PATTERNS = ("*.json", "*.csv", "*/*.json", "*/ann/*.json")


def _advice_on(file: Path) -> str:
    content = searchable(file)
    found = next((form for form in _FORMS if form[0].encode() in content), None)
    return f"{file.name} is in the format of {found[1]}, which rarebox does not read. {found[2]}" if found else ""
