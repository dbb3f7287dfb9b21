"""How the documentation is built: Sphinx, with pages in Markdown and nothing loaded from elsewhere."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

_init = (HERE.parent / "robustml/__init__.py").read_text(encoding="utf-8")
_version = re.search(r'^__version__ = "(.+)"', _init, re.MULTILINE)

# The toolbox reports its progress to whoever listens, and Sphinx does.
logging.getLogger("art").setLevel(logging.WARNING)

project = "robustml"
author = "The robustml authors"
project_copyright = "The robustml authors"
release = version = _version.group(1) if _version else "unknown"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_gallery.gen_gallery",
    "robustml_docs",
]
exclude_patterns = ["_build", "_ext", "schema"]
nitpicky = False

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"robustml {release}"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": r"/\d\d_",
    "ignore_pattern": r"__init__\.py",
    "reset_argv": "robustml_docs.quick",
    "reset_modules": (),
    "image_scrapers": (),
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1_000_000,
    "show_signature": False,
    "abort_on_example_error": True,
    "write_computation_times": False,
}
