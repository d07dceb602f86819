"""The documentation site: `make docs`. The source folder is the repository's root, so that links work as on GitHub."""

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
python_use_unqualified_type_names = True
