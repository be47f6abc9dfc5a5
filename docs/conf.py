"""Sphinx configuration: MyST Markdown, notebooks by myst-nb, the API by autodoc. `make docs` builds it strictly."""

import shutil
import sys
from pathlib import Path

import kd_jax

sys.path.insert(0, str(Path(__file__).parent))
import cli_reference  # noqa: E402
import figures  # noqa: E402

ROOT = Path(__file__).parents[1]
# Notebooks are kept in experiments/notebooks; Sphinx reads pages below docs/ alone.
figures.main()
cli_reference.main()
shutil.copytree(ROOT / "experiments/notebooks", ROOT / "docs/notebooks", dirs_exist_ok=True)

project = "kd_jax"
author = "The kd_jax authors"
release = version = kd_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "reference/generated"]
nitpicky = False  # types of libraries without an inventory here cannot be linked offline
nb_execution_mode = "off"  # tests/experiments/test_notebooks.py runs them
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # dataclass fields are described once, under Attributes
napoleon_use_rtype = False

smartquotes = False  # options and strings can be copied as they stand

copybutton_exclude = ".linenos, .gp, .go"
html_theme = "furo"
html_title = f"kd_jax {version}"
html_static_path = []
html_show_sphinx = False
