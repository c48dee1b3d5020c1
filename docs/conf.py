"""Settings of the documentation site: ``sphinx-build -W -b html docs build/site``.

Sphinx, because it reads the numpydoc docstrings and stops at an unknown reference.  MyST, because
the pages are Markdown, which a code host shows as well.  Furo, because it is plain.
"""

import rmsjit

project = "rmsjit"
version = release = rmsjit.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_ignore_module_all = False  # what is public is what __all__ names
autosummary_imported_members = True
autodoc_mock_imports = ["torch"]  # also where it is installed, as its docstrings have faults
autodoc_typehints = "none"  # docstrings have the types
numpydoc_show_class_members = False  # the pages of classes document every method

html_theme = "furo"
html_title = f"rmsjit {release}"
html_static_path: list[str] = []
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
