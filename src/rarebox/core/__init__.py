"""Tools that know nothing of active learning: boxes, files, text, random streams."""
