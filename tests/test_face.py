"""The public face: every name loads, has an example, and importing it costs nothing."""

import inspect
import subprocess
import sys

import pytest

import kd_jax

NAMES = [name for name in kd_jax.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_loads_and_says_what_it_is(name):
    thing = vars(sys.modules["kd_jax"])["__getattr__"](name)
    assert name in dir(kd_jax)
    assert thing.__name__ == name
    assert ">>>" in inspect.getdoc(thing)


def test_no_name_is_hidden_by_a_folder(root):
    """`from kd_jax import x` gives the subpackage x, once imported, whatever the face says."""
    modules = {path.stem for path in (root / "kd_jax").iterdir()}
    assert not modules & set(kd_jax.__all__)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'TopP'; it has"):
        _ = kd_jax.TopP


def test_importing_it_imports_no_jax(root):
    code = "import sys, kd_jax, kd_jax.cli.main as m; m.main(['--help']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
