"""Python entry points: run, models of a run and of a folder in Hugging Face's layout, batches, metrics."""

import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest

import kd_jax
from kd_jax.artifacts.manifest import read_lines
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.errors import KdError
from kd_jax.phases.workdirs import read_experiment

SMOKE = "experiments/configs/smoke.py"
SETTINGS = {"beam": 3, "max_length": 12}


@pytest.fixture(scope="module")
def model(smoke_run, lax_promotion):
    return kd_jax.load_model(smoke_run, "student_kd")


@pytest.fixture(scope="module")
def examples(smoke_run):
    """Return (prompt, completion) pairs of the test split."""
    rows = read_lines(Workdir(smoke_run).data.file("test.jsonl"))[:5]
    task = kd_jax.Translation()
    return [(row[task.source], row[task.target]) for row in rows]


def command_output(monkeypatch, capsys, workdir, prompts, *options):
    """Return the lines that the command `generate` writes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(prompts).encode() + b"\n")))
    capsys.readouterr()
    assert main(["generate", "--workdir", str(workdir), "--model", "student_kd", *options]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "settings, options",
    [
        ({}, []),
        (SETTINGS, ["--beam", "3", "--length", "12"]),
        ({"temperature": 1.0, "seed": 5}, ["--temperature", "1", "--seed", "5"]),
    ],
    ids=["greedy", "beam", "sampling"],
)
def test_generate_equals_the_command(model, examples, smoke_run, monkeypatch, capsys, settings, options):
    prompts = [prompt for prompt, _ in examples]
    expected = command_output(monkeypatch, capsys, smoke_run, prompts, *options)
    assert model.generate(prompts, **settings) == expected


def test_log_likelihood_is_the_sum_of_log_probabilities(model, examples):
    """It equals a log-softmax in float64, computed here for one example at a time without padding."""
    result = model.log_likelihood(examples)
    expected, tokens = [], []
    for prompt, completion in examples:
        ids = np.asarray([*model.tokenizer.encode(completion), model.tokenizer.eos])
        source = np.asarray(model.tokenizer.encode_prompt(prompt))
        rows = [np.arange(len(x))[None] for x in (ids, source)]
        encoder = kd_jax.Tokens(source[None], rows[1], np.ones_like(rows[1]))
        decoder = kd_jax.Tokens(np.asarray([[model.tokenizer.start, *ids[:-1]]]), rows[0], np.ones_like(rows[0]))
        inputs = kd_jax.Inputs(index_B=np.zeros(1, np.int32), decoder=decoder, encoder=encoder)
        inputs = jax.tree.map(lambda x: np.asarray(x, np.int32), inputs)
        hidden_BTD = jax.jit(model.model.apply)(model.params, inputs)
        logits_TV = np.asarray(model.model.head(model.params).logits(hidden_BTD), np.float64)[0]
        logp_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        expected.append(logp_TV[np.arange(len(ids)), ids].sum())
        tokens.append(len(ids))
    np.testing.assert_allclose(result.sums, expected, rtol=1e-4)
    assert result.tokens.tolist() == tokens


def test_hugging_face_folder_gives_the_same_texts(model, examples, smoke_run, tmp_path):
    folder = tmp_path / "exported"
    assert main(["export", "--workdir", str(smoke_run), "--model", "student_kd", "--to", str(folder)]) == 0
    exported = kd_jax.load_model(folder)
    prompts = [prompt for prompt, _ in examples]
    assert exported.generate(prompts, **SETTINGS) == model.generate(prompts, **SETTINGS)
    ours, theirs = model.log_likelihood(examples), exported.log_likelihood(examples)
    np.testing.assert_allclose(theirs.sums, ours.sums, rtol=1e-4)
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)


def test_batches_contain_every_example_once(smoke_run):
    batches = kd_jax.load_batches(smoke_run, "test", "teacher", batch_size=16)
    numbers = [int(i) for batch in batches for i in batch.inputs.index_B if i >= 0]
    examples = read_lines(Workdir(smoke_run).data.file("test.jsonl"))
    assert sorted(numbers) == list(range(len(examples)))


def test_metrics_are_arrays_of_the_log(smoke_run):
    metrics = kd_jax.read_metrics(smoke_run, "student_kd")
    log = Workdir(smoke_run).model("student_kd").path / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert metrics["step"].tolist() == [row["step"] for row in rows]
    assert metrics["step"].dtype == np.int64
    for name, values in metrics.items():
        expected = [row.get(name, np.nan) for row in rows]
        np.testing.assert_array_equal(values, expected)


def test_missing_runs_and_names_are_refused(smoke_run, tmp_path, model):
    with pytest.raises(KdError, match="path: expected a run's workdir or a folder with config.json"):
        kd_jax.load_model(tmp_path)
    for load in (kd_jax.load_model, kd_jax.read_metrics):
        with pytest.raises(KdError, match="name: expected one of teacher, .*, got student_dk"):
            load(smoke_run, "student_dk")
    with pytest.raises(KdError, match="texts: expected .* pairs for an encoder-decoder, got the text 'a house'"):
        model.log_likelihood(["a house"])
    with pytest.raises(KdError, match="decoding.beam: expected an integer in .1, 1000., got 0"):
        model.generate(["a house"], beam=0)


def test_run_skips_what_the_command_finished_and_returns_the_report(smoke_copy, root):
    experiment = kd_jax.load_experiment(root / SMOKE)
    manifest = (smoke_copy / "teacher/manifest.json").read_bytes()
    models = json.loads((smoke_copy / "report/report.json").read_text())["models"]
    report = kd_jax.run(experiment, smoke_copy)
    assert report == json.loads((smoke_copy / "report/report.json").read_text()) and report["models"] == models
    assert (smoke_copy / "teacher/manifest.json").read_bytes() == manifest


def test_run_refuses_another_experiment_a_locked_workdir_and_a_file(smoke_copy, root, tmp_path):
    experiment = kd_jax.load_experiment(root / SMOKE)
    with pytest.raises(kd_jax.KdError, match="seed"):
        kd_jax.run(dataclasses.replace(experiment, seed=1), smoke_copy)
    assert read_experiment(Workdir(smoke_copy)).seed == 0
    with (
        Workdir(smoke_copy).lock(),
        pytest.raises(kd_jax.KdError, match="expected a folder that no other process uses"),
    ):
        kd_jax.run(experiment, smoke_copy)
    (tmp_path / "file").write_text("")
    with pytest.raises(kd_jax.KdError, match="expected a folder, got the file"):
        kd_jax.run(experiment, str(tmp_path / "file"))


def test_run_calls_all_phases_in_order(monkeypatch, root, tmp_path):
    phases = ["prepare", "teacher", "cache", "student", "evaluate", "report"]
    called = []
    for phase in phases:
        monkeypatch.setattr(f"kd_jax.phases.{phase}.run", lambda *_, phase=phase, **__: called.append(phase))
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "a")]) == 0
    with pytest.raises(kd_jax.KdError, match="report"):  # which is not written here
        kd_jax.run(kd_jax.load_experiment(root / SMOKE), tmp_path / "b")
    assert called == 2 * phases
