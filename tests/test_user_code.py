"""Which modules are the user's, and that every one of them counts that a part of an experiment needs."""

import functools
import importlib
import subprocess
import sys

import optax
import pytest

from kd_jax import Term, TopK, cross_entropy
from kd_jax.user_code import code_digests

FILES = {
    "uc_losses.py": "import numpy\nfrom uc_math import root\n\ndef loss(logits_NV, targets_N):\n    import uc_late\n",
    "uc_math.py": "from uc_package import part\n\ndef root(x): return x\n",
    "uc_late.py": "late = 1\n",
    "uc_unused.py": "unused = 1\n",
    "uc_package/__init__.py": "from . import inner\n",
    "uc_package/inner.py": "from .deep import value\n",
    "uc_package/deep.py": "value = 1\n",
    "uc_package/part.py": "def part():\n    import uc_losses\n",  # a circle
}
ALL = {"uc_losses", "uc_math", "uc_late", "uc_package", "uc_package.inner", "uc_package.deep", "uc_package.part"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("uc_")]:
        del sys.modules[name]


def terms():
    loss = importlib.import_module("uc_losses").loss
    return {"plain": Term(cross_entropy), "own": Term(functools.partial(loss), signal=TopK(k=2))}


def test_modules_are_followed_through_imports(folder):
    """Also through packages, circles, and imports inside functions, whose modules are not loaded for it."""
    assert set(code_digests(terms())) == {f"code.{name}" for name in ALL}
    assert "uc_late" not in sys.modules


@pytest.mark.parametrize("name", [name for name in FILES if name != "uc_unused.py"])
def test_each_module_changes_its_digest_alone(folder, name):
    before = code_digests(terms())
    (folder / name).write_text(FILES[name] + "# more\n")
    after = code_digests(terms())
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert {key for key in before if before[key] != after[key]} == {f"code.{module}"}


def test_installed_packages_are_not_the_users():
    parts = (Term(cross_entropy), Term(optax.losses.softmax_cross_entropy), functools.partial(dict, a=1))
    assert code_digests(*parts) == {}


def test_a_function_of_a_script_counts_by_itself(folder, root):
    """Another line of the script changes nothing; a line of the function, or of a module of the script, does."""
    script = "import uc_math\nfrom kd_jax.user_code import code_digests\n{other}\ndef mine(x): return {body}\n"
    script += "print(sorted(code_digests(mine).items()))\n"

    def digests(**parts):
        (folder / "script.py").write_text(script.format(**parts))
        command = [sys.executable, str(folder / "script.py")]
        result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(root), "PATH": ""})
        assert result.returncode == 0, result.stderr
        return dict(eval(result.stdout))

    first = digests(other="a = 1", body="x")
    assert {"code.__main__.mine", "code.uc_math"} <= set(first) and "code.__main__" not in first
    assert digests(other="a = 2", body="x") == first
    assert digests(other="a = 1", body="2 * x")["code.__main__.mine"] != first["code.__main__.mine"]
