"""README and docs: every shell and Python block runs as it stands, on small settings where the page says so."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.pages import code_blocks

ROOT = Path(__file__).parents[1]
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
ALWAYS = {"README.md"}  # the other pages run in `make test-all`
SECONDS = 600


def pages():
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        if any(not block.skip_reason for block in code_blocks(page)):
            yield pytest.param(page, id=name, marks=() if name in ALWAYS else pytest.mark.extended)


@pytest.mark.parametrize("page", list(pages()))
def test_blocks_run(page, smoke_run, tmp_path):
    """All blocks of a page run in order, in one folder with the repository's files and a finished smoke run."""
    for name in ("experiments", "kd_jax", "README.md", "pyproject.toml", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(smoke_run, tmp_path / "runs/smoke")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    python = ""  # blocks of a page build on each other
    for block in code_blocks(page):
        if block.skip_reason:
            continue
        if block.language in ("python", "pycon"):
            python += block.code
            command = [sys.executable, "-c", python]
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert result.returncode == 0, f"{page}:{block.line}\n{block.code}\n{result.stderr[-3000:]}"
        for text in block.prints:
            assert text in result.stdout + result.stderr, f"{page}:{block.line} prints {result.stdout!r}"


def test_reasons_are_given():
    """A block that is not run says why."""
    reasons = [block.skip_reason for page in PAGES for block in code_blocks(page) if block.skip_reason]
    assert all(len(reason.split()) >= 3 for reason in reasons)


def prose(page: Path) -> str:
    """Return a page's text without code, comments, tables and directives."""
    text = re.sub(r"^(```+|:::+).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE)


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"\w[\w'.-]*", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))) <= 900
    plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", prose(ROOT / "README.md"))
    sentences = re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n[-*#] ", plain)
    too_long = [sentence for sentence in sentences if len(sentence.split()) > 25]
    assert not too_long
