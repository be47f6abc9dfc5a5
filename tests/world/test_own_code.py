"""What decides a result and is no field: a user's own modules, and the weights of a pretrained folder.

A changed body is refused by the name of its module, wherever the module is: of the loss, of the task, or imported by
one of them. A run with own classes is used with --config or `experiment=`.
"""

import dataclasses
import io
import json
import sys

import pytest
from safetensors.numpy import load_file, save_file

import kd_jax
from kd_jax import FromHuggingFace, HuggingFaceTokenizer
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.errors import KdError
from kd_jax.experiment import resolve
from kd_jax.phases import prepare, teacher
from tests.helpers.pretrained import write_pretrained

MODULES = {
    "own_roots": "def half(x):\n    return 0.5 * x\n",
    "own_losses": """
import jax.numpy as jnp
from own_roots import half

def hellinger(teacher_logp_NK, student_logp_NK):
    return half((jnp.exp(half(teacher_logp_NK)) - jnp.exp(half(student_logp_NK))) ** 2).sum(-1)
""",
    "own_tasks": """
import dataclasses
from kd_jax import Translation

@dataclasses.dataclass(frozen=True)
class Mine(Translation):
    name = "mine"

    def prompt(self, example):
        return example[self.source]
""",
    "own_models": """
import dataclasses
from kd_jax import EncoderDecoder

@dataclasses.dataclass(frozen=True)
class Network(EncoderDecoder):
    pass
""",
}
CONFIG = """
import dataclasses
from own_losses import hellinger
from own_models import Network
from own_tasks import Mine
from kd_jax import Term, TopK, Training, Optimizer, load_experiment

smoke = load_experiment({smoke!r})
training = Training(steps=2, eval_every=2, optimizer=Optimizer(warmup=1))
student = smoke.students["student_scratch"]
model = Network(encoder_layers=2, decoder_layers=1, d_model=32, heads=2, d_ff=64, dropout=0.0)
mine = dataclasses.replace(student, model=model, training=training, terms={{"kd": Term(hellinger, signal=TopK(k=8))}})
experiment = dataclasses.replace(
    smoke, task=Mine("en", "fr", decoding=smoke.task.decoding), backend="jit", comparison=None,
    teacher=dataclasses.replace(smoke.teacher, training=training), students={{"mine": mine}}
)
"""


@pytest.fixture(scope="module")
def own(root, tmp_path_factory, lax_promotion):
    """Return the folder of a config with own loss, task and network, and of its run `w` up to the students."""
    folder = tmp_path_factory.mktemp("own")
    for name, source in MODULES.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "own_config.py").write_text(CONFIG.format(smoke=str(root / "experiments/configs/smoke.py")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        for command in ("prepare", "teacher", "cache", "student"):
            assert main([command, str(folder / "own_config.py"), "--workdir", str(folder / "w")]) == 0
        yield folder
        for name in MODULES:
            del sys.modules[name]


def run(own, command, *words):
    return main([command, str(own / "own_config.py"), "--workdir", str(own / "w"), *words])


@pytest.mark.parametrize(
    "module, folder, phase",
    [
        ("own_losses", "students/mine", "student --force --only mine"),
        ("own_roots", "students/mine", "student --force --only mine"),
        ("own_models", "students/mine", "student --force --only mine"),
        ("own_tasks", "data", "prepare --force"),
    ],
)
def test_a_changed_body_is_refused_by_its_module(own, capsys, module, folder, phase):
    path = own / f"{module}.py"
    before = path.read_text()
    for command in ("prepare", "teacher", "student", "evaluate", "report"):
        path.write_text(before + "\n# changed\n")
        try:
            assert run(own, command) == 2
        finally:
            path.write_text(before)
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert error.startswith(f"error: {own / 'w' / folder}: the source of {module} has changed: expected ")
        assert error.endswith(f"Choose another --workdir, or run `{phase}`.")
    assert run(own, "student") == 0
    assert "mine: already trained" in capsys.readouterr().err


def test_manifests_name_the_modules_that_each_folder_depends_on(own):
    """A teacher of kd_jax's own parts depends on no module; kd_jax and installed packages are not digested."""

    def modules(folder):
        inputs = json.loads((own / "w" / folder / "manifest.json").read_text())["inputs"]
        return {name.removeprefix("code.") for name in inputs if name.startswith("code.")}

    assert modules("students/mine") == {"own_losses", "own_models", "own_roots"}
    assert modules("data") == {"own_tasks"} and not modules("teacher") | modules("cache/topk")


@pytest.mark.parametrize("command", ["generate", "export"])
def test_a_run_with_own_classes_is_used_with_its_config(own, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one red house\n")))
    words = [command, "--workdir", str(own / "w"), "--model", "teacher"]
    words += ["--to", str(tmp_path / "to")] if command == "export" else []
    assert main(words) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: task: expected a class of kd_jax, got own_tasks.Mine, ")
    assert "--config CONFIG" in error and "experiment=kd_jax.load_experiment(CONFIG)" in error
    assert main([*words, "--config", str(own / "own_config.py")]) == 0
    assert main([*words, "--config", "experiments/configs/smoke.py"]) == 2
    assert "own_tasks.Mine" in capsys.readouterr().err.strip().split("\n")[-1]


def test_a_changed_network_is_not_used(own, capsys):
    words = ["generate", "--workdir", str(own / "w"), "--model", "mine", "--config", str(own / "own_config.py")]
    path = own / "own_models.py"
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    try:
        assert main(words) == 2
    finally:
        path.write_text(before)
    assert "the source of own_models has changed" in capsys.readouterr().err


def test_an_own_class_is_brought_from_python(own):
    for load in (kd_jax.load_model, kd_jax.load_batches):
        with pytest.raises(KdError, match=r"task: expected a class of kd_jax, got own_tasks\.Mine, .*experiment="):
            load(own / "w", name="mine")
    experiment = kd_jax.load_experiment(own / "own_config.py")  # the fields are those of the run
    experiment = dataclasses.replace(experiment, seed=9)
    model = kd_jax.load_model(own / "w", "mine", experiment=experiment)
    assert type(model.architecture).__name__ == "Network" and len(model.generate(["one red house"])) == 1
    assert len(list(kd_jax.load_batches(own / "w", "test", "mine", experiment=experiment)))
    assert len(kd_jax.read_metrics(own / "w", "mine")["step"])  # which needs no class


def test_other_weights_in_a_pretrained_folder_are_refused(root, tmp_path, lax_promotion):
    """The same folder, config.json and sizes, but other numbers in its file, as after `git pull`."""
    folder = write_pretrained(tmp_path / "model", "encoder_decoder")
    base = kd_jax.load_experiment(root / "experiments/configs/smoke.py")
    recipe = dataclasses.replace(
        base.teacher,
        model=None,
        init=FromHuggingFace(str(folder)),
        training=dataclasses.replace(base.teacher.training, steps=0),
    )
    tokenizer = HuggingFaceTokenizer(str(folder))
    experiment = dataclasses.replace(
        base, tokenizer=tokenizer, teacher=recipe, students={}, comparison=None, buckets=(40,), backend="jit"
    )
    experiment, workdir = resolve(experiment), Workdir(tmp_path / "w")
    prepare.run(experiment, workdir)
    teacher.run(experiment, workdir)
    teacher.run(experiment, workdir)  # the same weights
    path = folder / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(KdError, match=r"teacher: expected to be made with weights\.model\.safetensors .* --force"):
        teacher.run(experiment, workdir)
