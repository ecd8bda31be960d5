"""Sphinx configuration. Nothing is fetched: `make docs` works offline."""

import bayesmeta

project = "bayesmeta"
author = "the bayesmeta developers"
project_copyright = author
release = bayesmeta.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "bayesmeta"

# docs/ links to files of the repository beside it, which are not pages; tests/test_docs.py checks those links.
suppress_warnings = ["myst.xref_missing"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of other projects have formats of their own
autodoc_default_options = {"members": True, "undoc-members": True}
