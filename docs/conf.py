"""The documentation site: `make docs`. The source folder is the repository's root, so that links work as on GitHub."""

import re

from numpy.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

from rarebox import __version__

project, author, copyright = (
    "rarebox",
    "the rarebox authors",
    "the rarebox authors, Apache-2.0",
)
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "docs/*.md",
    "docs/*.ipynb",
    "paper/README.md",
    "benchmarks/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "node_modules", "src", "tests"]  # Sphinx walks every other folder, and .venv is large

highlight_language = "none"  # blocks without a language are commands and listings, not Python

html_theme = "furo"
html_title = f"rarebox {release}"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

# The notebooks are committed without outputs. Building the site runs them.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of this machine

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

ARRAY = re.compile(r"~?[\w.]*ndarray\[tuple\[~?[\w.]*Any, \.\.\.\], ~?[\w.]*dtype\[~?(?:numpy\.)?(\w+)\]\]")
ANY_ARRAY = [stringify_annotation(ArrayLike, mode) for mode in ("smart", "fully-qualified-except-typing")]


def shorten(app, what, name, obj, options, signature, returns):
    """Call arrays in signatures NDArray and ArrayLike, as the code does."""

    def short(text: str | None) -> str | None:
        if text is None:
            return None
        for union in ANY_ARRAY:
            text = text.replace(union, "ArrayLike")
        return ARRAY.sub(r"NDArray[\1]", text).replace("<factory>", "...")

    return short(signature), short(returns)


def setup(app):
    app.connect("autodoc-process-signature", shorten)
