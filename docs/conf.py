"""How Sphinx builds the site: ``make docs``. Pages on commands, chapters and modules are made from the code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from otus import __version__

project = "Otus"
author = "The Otus developers"
copyright = "the Otus developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "commands", "rooms", "references", "gallery"]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = True
smartquotes_action = "qe"  # an option's -- is no dash
# What annotations name and other projects document: this site does not link into them, since it is built without network.
nitpick_ignore_regex = [("py:.*", r"(?!otus\b).*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
autosummary_generate = False  # numpydoc brings it in; the extension rooms writes the pages
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"Otus {release}"
html_static_path = ["_static"]
html_css_files = ["otus.css"]
html_show_sphinx = False
html_copy_source = False
