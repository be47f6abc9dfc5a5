"""The public API: its names, their types in an editor, and its import, which loads no JAX."""

import importlib.util
import inspect
import json
import subprocess
import sys

import pytest

import kd_jax

MODULES = (
    "decoding",
    "losses",
    "models",
    "optim",
    "phases",
    "recipes",
    "schedules",
    "signals",
    "sources",
    "tasks",
    "tokenizers",
)
NAMES = [name for name in kd_jax.__all__ if name != "__version__" and name not in MODULES]
SCRIPT = """
import jax.numpy as jnp
import kd_jax
from kd_jax import DecoderOnly, Experiment, Generation, Recipe, SentencePiece, Term, TopK, Toy, Training, forward_kl

topk = TopK(k=8, tail="renormalise")
recipe = Recipe(DecoderOnly(), {"kd": Term(forward_kl, signal=topk)}, Training(steps=10))
experiment = Experiment(
    name="mine",
    source=Toy(kind="documents"),
    task=Generation(),
    tokenizer=SentencePiece(),
    buckets=(32,),
    teacher=recipe,
    students={"student_kd": recipe},
)
loss_N = forward_kl(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
model = kd_jax.load_model("runs/mine", "student_kd")
texts = model.generate(["a text"], beam=2, max_length=16)
likelihoods = model.log_likelihood([("a", "b"), "c"])
metrics = kd_jax.read_metrics("runs/mine")
"""
EXPRESSIONS = {
    "topk": "TopK",
    "topk.k": "int",
    "experiment": "Experiment",
    "experiment.source": "Source",
    "experiment.task": "Task",
    "experiment.tokenizer": "TokenizerSettings",
    "recipe.terms": "Mapping[str, Term]",
    "loss_N": "Array",
    "kd_jax.losses.forward_kl(loss_N, loss_N)": "Array",
    "kd_jax.signals.TopK(k=2)": "TopK",
    "model": "LoadedModel",
    "model.model": "Model",
    "model.tokenizer": "Tokenizer",
    "texts": "list[str]",
    "likelihoods.tokens": "ndarray",
    "metrics": "dict[str, ndarray",
    "kd_jax.load_experiment('x.py').recipes": "Mapping[str, Recipe]",
}


@pytest.mark.parametrize("name", NAMES)
def test_name_loads_and_has_an_example(name):
    value = getattr(kd_jax, name)
    assert name in dir(kd_jax)
    assert value.__name__ == name
    assert ">>>" in inspect.getdoc(value)


@pytest.mark.parametrize("module", MODULES)
def test_folder_is_a_namespace(module):
    namespace = getattr(kd_jax, module)
    assert namespace.__name__ == f"kd_jax.{module}"
    for name in getattr(namespace, "__all__", ()):
        assert getattr(namespace, name) is getattr(kd_jax, name, getattr(namespace, name))


def test_flat_names_are_not_modules(root):
    """`from kd_jax import x` gives the module x once it is imported, whatever __init__.pyi says."""
    modules = {path.stem for path in (root / "kd_jax").iterdir()}
    assert not modules & set(NAMES)


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'TopP'; it has"):
        _ = kd_jax.TopP


def test_import_and_help_load_no_jax(root):
    code = "import sys, kd_jax, kd_jax.cli.main as m; m.main(['--help']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_user_script_has_types(root, tmp_path):
    """Pyright finds no error in a user's script and knows the type of each expression."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "".join(f"reveal_type({expression})\n" for expression in EXPRESSIONS))
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(root)], "typeCheckingMode": "basic"}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "--project"]
    finished = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    messages = [entry for entry in json.loads(finished.stdout)["generalDiagnostics"]]
    assert not [entry["message"] for entry in messages if entry["severity"] == "error"]
    types = [
        entry["message"].split('" is "')[1].removesuffix('"') for entry in messages if "Type of" in entry["message"]
    ]
    assert len(types) == len(EXPRESSIONS)
    for (expression, expected), revealed in zip(EXPRESSIONS.items(), types, strict=True):
        assert revealed.startswith(expected), expression
        assert "Unknown" not in revealed, expression
        assert "Any" not in revealed.replace("tuple[Any, ...]", "").replace("dtype[Any]", ""), expression
