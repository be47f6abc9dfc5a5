"""The API page lists every public name once."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_api_page_lists_every_public_name_once():
    """The names of docs/reference/api.md are those of the stub."""
    stub = (ROOT / "kd_jax/__init__.pyi").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    names = re.findall(r"^from \S+ import (\w+) as \1$", stub, re.MULTILINE)
    names += re.findall(r"^(\w+): ", stub, re.MULTILINE)  # __version__
    documented = re.findall(r"^\.\. (?:auto\w+|py:data|py:module):: kd_jax\.(\w+)$", page, re.MULTILINE)
    assert Counter(documented) == Counter(names)
