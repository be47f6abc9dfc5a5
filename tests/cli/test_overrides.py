"""Fields of an experiment that are replaced from the command line."""

import pytest

from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError

SMOKE = "experiments/configs/smoke.py"


def test_overrides_reach_every_part(root):
    words = """
    --teacher.terms.ce.options.label-smoothing 0.2 --students.student_kd.terms.kd.signal.k 5 --buckets 8 40
    --students.student_init.init.decoder 1 --tokenizer.model-type bpe --students.student_kd.terms.kd.weight 0.25
    """
    experiment = apply_overrides(str(root / SMOKE), words.split())
    assert experiment.students["student_kd"].terms["kd"].weight == 0.25
    assert experiment.teacher.terms["ce"].options["label_smoothing"] == 0.2
    assert experiment.students["student_kd"].terms["kd"].signal.k == 5
    assert experiment.students["student_init"].init.decoder == (1,)
    assert experiment.buckets == (8, 40) and experiment.tokenizer.model_type == "bpe"


@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_field_takes_a_word(root, value):
    experiment = apply_overrides(str(root / SMOKE), ["--teacher.training.packed", str(value)])
    assert experiment.teacher.training.packed == value


def test_a_file_without_an_experiment_is_refused(root, tmp_path):
    with pytest.raises(KdError, match="expected a variable `experiment`, got none"):
        apply_overrides(str(root / "kd_jax/types.py"), [])
    (tmp_path / "config.py").write_text("from kd_jax import Training\nexperiment = Training(steps=1)\n")
    with pytest.raises(KdError, match="expected `experiment` to be an Experiment, got Training"):
        apply_overrides(str(tmp_path / "config.py"), [])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--teacher.training.step", "5"], "Did you mean --teacher.training.steps?"),
        (["--sed", "5"], "run: unknown option --sed. Did you mean --seed?"),
        (["--seed", "x"], "--seed: expected an integer, got 'x'."),
        (["--source.examples"], "--source.examples: expected an integer, got none."),
        (["--teacher.model.norm", "batch"], "--teacher.model.norm: expected rms or layer, got 'batch'."),
        (["--teacher.model.tied", "maybe"], "--teacher.model.tied: expected True or False, got 'maybe'."),
        (["--buckets", "a"], "--buckets: expected integers, got 'a'."),
        (["--teacher.training", "5"], "Did you mean --teacher.training.steps?"),
        (["--seed", "1", "2"], "unexpected word '2'"),
        (["--buckets", "20", "12"], "buckets: expected padded lengths in ascending order, got (20, 12)"),
        (["--teacher.model.heads", "3"], "heads"),
        (["--students.student_kd.terms.kd.signal.k", "1000"], "students.student_kd.terms.kd.signal.k"),
        (["--teacher.training.optimizer.warmup", "240"], "warmup"),
        (["--backend", "tpu"], "backend"),
        (["--evaluation.bootstrap", "1"], "evaluation.bootstrap: expected an integer in [2, 1000000], got 1"),
        (["--evaluation.split", "train"], "evaluation.split: expected validation or test, got 'train'"),
        (["--students.student_kd.terms.kd.signal.tail", "drop"], "tail"),
        (["--students.student_kd.terms.kd.weight", "0"], "students.student_kd.terms.kd.weight: expected"),
        (["--teacher.model.soft-cap", "-1"], "soft_cap"),
    ],
)
def test_an_invalid_field_is_one_line_and_exit_code_2(words, message, root, tmp_path, capsys):
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "w"), *words]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "term, message",
    [
        ("Term(reverse_kl, signal=Sampled())", "terms.kd.loss: "),
        ("Term(forward_kl, signal=TopK(k=65))", "terms.kd.signal.k: "),
        ("Term(mse, signal=HiddenStates(layers=((1, 0),)))", "terms.kd.signal.layers: "),
        ("Term(forward_kl, signal=AttentionRelations(layers=((0, 0),), heads=3))", "terms.kd.signal.heads: "),
    ],
)
def test_an_objective_that_cannot_be_is_refused_when_the_run_starts(term, message, root, tmp_path, capsys):
    lines = [
        "import dataclasses",
        "from kd_jax import AttentionRelations, HiddenStates, Sampled, Term, TopK, forward_kl, mse, reverse_kl",
        "from kd_jax import load_experiment",
        f"smoke = load_experiment({str(root / SMOKE)!r})",
        f"recipe = dataclasses.replace(smoke.students['student_kd'], terms={{'kd': {term}}})",
        "experiment = dataclasses.replace(smoke, students={'it': recipe}, comparison=None)",
    ]
    (tmp_path / "config.py").write_text("\n".join(lines))
    assert main(["run", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "w")]) == 2
    assert f"error: students.it.{message}" in capsys.readouterr().err.strip().split("\n")[-1]
    assert not (tmp_path / "w").exists()
