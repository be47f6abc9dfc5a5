"""The choice of a checkpoint: the headline of validation texts decides, also for students of pseudo-targets."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.artifacts import checkpoint, metrics_log
from kd_jax.artifacts.checkpoint import METRIC, Checkpoints
from kd_jax.artifacts.digests import params_digest
from kd_jax.artifacts.manifest import read_lines
from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.targets import PseudoTargets
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import load_candidates
from kd_jax.experiment import Training
from kd_jax.phases import student
from kd_jax.phases.check import check
from kd_jax.runtime import preemption
from kd_jax.runtime.mesh import Mesh
from kd_jax.runtime.progress import Bar
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.generation import Generation
from kd_jax.tasks.metrics import Metric, ratio
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.model import load_trained
from kd_jax.training.selection import ValidationTexts, decodes_texts, manifest_inputs, selection_value
from kd_jax.training.step import init_state
from kd_jax.types import Inputs, Tokens
from tests.helpers.runs import run_until_cache, smoke

STEPS = (4, 8, 12)  # evaluated
SELECT = ("headline", "cross_entropy", "last")


def characters(outcome):
    """Return (characters of the text, 1) of each example."""
    return np.asarray([(len(text), 1) for text in outcome.texts], np.float64)


@dataclasses.dataclass(frozen=True)
class ShortTexts(Translation):
    """Translation whose headline prefers short texts, which the cross-entropy does not."""

    @property
    def metrics(self):
        """Return the mean number of characters."""
        return (Metric("characters", "characters", False, 1, "texts", characters, ratio),)


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """Return the smoke experiment with three students of pseudo-targets that differ in the choice alone."""
    overrides = "--buckets 32 --evaluation.cached-k 0 --source.examples 160 --teacher.training.steps 60"
    base = smoke(root, [*overrides.split(), "--teacher.training.eval-every", "60"])
    recipe = base.students["student_scratch"]
    optimizer = dataclasses.replace(recipe.training.optimizer, warmup=2)
    students = {}
    for select in SELECT:
        training = Training(12, recipe.training.tokens_per_batch, eval_every=4, optimizer=optimizer, select=select)
        students[select] = dataclasses.replace(recipe, training=training, targets=PseudoTargets("best", beam=2))
    task = ShortTexts("en", "fr", decoding=Decoding(beam=1, length_ratio=0.0, length=24))
    return dataclasses.replace(base, task=task, students=students, comparison=None)


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    """Return a run whose students keep the checkpoints of all steps."""
    run = run_until_cache(experiment, tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "LATEST", len(STEPS))
        student.run(experiment, run)
    return run


def log_rows(workdir, name):
    """Return step -> row of the evaluations after the first step."""
    rows = metrics_log.read(workdir.model(name).path / "metrics.jsonl")
    return {row["step"]: row for row in rows if METRIC in row and row["step"]}


def params_at(workdir, experiment, name, step):
    model = experiment.students[name].model.build(workdir.data.outputs()["vocab_size"])
    with Checkpoints(workdir.model(name).path) as checkpoints:
        return model, checkpoints.params(step, jax.eval_shape(model.init, jax.random.key(0)))


def mean_characters(workdir, experiment, name, step):
    """Decode the validation split by whole forward passes, one for each token, without cache or batches by length."""
    model, params = params_at(workdir, experiment, name, step)
    tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
    sources = [example["en"] for example in read_lines(workdir.data.file("validation.jsonl"))]
    prompts = [[*tokenizer.encode(source), tokenizer.eos] for source in sources]
    width, length, rows = max(map(len, prompts)), experiment.task.decoding.length, len(prompts)
    source_BS = np.zeros((rows, width), np.int32)
    for row, prompt in zip(source_BS, prompts, strict=True):
        row[: len(prompt)] = prompt
    is_token_BS = np.arange(width) < np.asarray([len(prompt) for prompt in prompts])[:, None]

    def tokens(ids_BT, is_token_BT):
        position_BT = np.broadcast_to(np.arange(ids_BT.shape[1], dtype=np.int32), ids_BT.shape)
        return Tokens(jnp.asarray(ids_BT), jnp.asarray(position_BT), jnp.asarray(is_token_BT, jnp.int32))

    @jax.jit
    def logits(written_BT):
        decoder = tokens(written_BT, np.ones((rows, length + 1), bool))
        inputs = Inputs(jnp.arange(rows), decoder, tokens(source_BS, is_token_BS))
        return model.head(params).logits(model.apply(params, inputs))

    written_BT = np.zeros((rows, length + 1), np.int32)
    written_BT[:, 0] = tokenizer.start
    for t in range(length):
        logits_BV = np.array(logits(written_BT)[:, t])
        logits_BV[:, list(tokenizer.suppress_tokens)] = -np.inf
        written_BT[:, t + 1] = logits_BV.argmax(-1)
    texts = []
    for ids in written_BT[:, 1:].tolist():
        texts.append(tokenizer.decode(ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids))
    return sum(map(len, texts)) / rows


def test_student_of_pseudo_targets_is_the_step_that_the_headline_chooses(experiment, workdir):
    """The choice is that of texts which the test decodes itself, and not that of the cross-entropy (trap 21)."""
    rows = log_rows(workdir, "headline")
    own = {step: mean_characters(workdir, experiment, "headline", step) for step in STEPS}
    assert {step: row["valid_characters"] for step, row in rows.items()} == pytest.approx(own)
    by_headline = min(STEPS, key=lambda step: (own[step], -step))
    by_cross_entropy = min(STEPS, key=lambda step: (rows[step][METRIC], -step))
    assert by_headline != by_cross_entropy, own
    outputs = workdir.model("headline").outputs()
    assert (outputs["best_step"], outputs["select"]) == (by_headline, "headline")
    assert outputs["valid_characters"] == pytest.approx(own[by_headline])
    assert outputs[METRIC] == rows[by_headline][METRIC]
    candidates = {candidate.name: candidate for candidate in load_candidates(experiment, workdir)}
    chosen = params_at(workdir, experiment, "headline", by_headline)[1]
    assert params_digest(candidates["headline"].params) == params_digest(chosen)


def test_other_choices_are_the_least_cross_entropy_and_the_last_step(experiment, workdir):
    """The students differ in the choice alone, so all have the same checkpoints, and neither decodes texts."""
    for name, step in (("cross_entropy", None), ("last", 12)):
        rows, outputs = log_rows(workdir, name), workdir.model(name).outputs()
        least = min(STEPS, key=lambda step: (rows[step][METRIC], -step))
        assert (outputs["best_step"], outputs["select"]) == (step or least, name)
        assert not any("valid_characters" in row for row in rows.values()) and outputs["selection_seconds"] == 0
        same = params_at(workdir, experiment, "headline", outputs["best_step"])[1]
        assert outputs["digest"] == params_digest(same)


def test_seconds_of_texts_are_no_training(workdir):
    outputs, rows = workdir.model("headline").outputs(), log_rows(workdir, "headline")
    assert outputs["selection_seconds"] == pytest.approx(sum(row["selection_seconds"] for row in rows.values()))
    trained = [row for row in metrics_log.read(workdir.model("headline").path / "metrics.jsonl") if "tokens" in row]
    rate = sum(row["tokens"] for row in trained) / sum(row["seconds"] for row in trained)
    assert outputs["train_tokens_per_second"] == pytest.approx(rate)


@pytest.mark.parametrize("backend, mesh", [("pmap", Mesh()), ("mesh", Mesh(fsdp=4, tensor=2))])
def test_eight_devices_score_as_one(experiment, workdir, backend, mesh):
    model, params = params_at(workdir, experiment, "headline", 12)
    scores = []
    for changes in ({}, {"backend": backend, "mesh": mesh}):
        changed = dataclasses.replace(experiment, **changes)
        scores.append(ValidationTexts(changed, workdir, changed.students["headline"]).score(params, Bar("texts", 1)))
    assert scores[0] == scores[1] == pytest.approx(log_rows(workdir, "headline")[12]["valid_characters"])


def test_texts_stop_on_request(experiment, workdir, monkeypatch):
    texts = ValidationTexts(experiment, workdir, experiment.students["headline"])
    monkeypatch.setattr(preemption, "stop_requested", lambda: True)
    assert texts.score(load_trained(experiment, workdir, TEACHER)[1], Bar("texts", 1)) is None


@pytest.mark.parametrize("count, expected", [(1, 1), (7, 7), (10**6, 20)])
def test_number_of_texts(experiment, workdir, count, expected):
    recipe = experiment.students["headline"]
    few = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, select_texts=count))
    assert ValidationTexts(experiment, workdir, few).count == expected


def test_prompts_longer_than_the_last_bucket_are_left_out(experiment, workdir):
    recipe = experiment.students["headline"]
    tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
    examples = read_lines(workdir.data.file("validation.jsonl"))
    lengths = sorted(len(tokenizer.encode(example["en"])) + 1 for example in examples)
    middle = lengths[len(lengths) // 2]
    narrow = dataclasses.replace(experiment, prompt_buckets=(middle,))
    assert ValidationTexts(narrow, workdir, recipe).count == sum(length <= middle for length in lengths) < len(lengths)
    none_fits = dataclasses.replace(experiment, prompt_buckets=(1,))
    assert ValidationTexts(none_fits, workdir, recipe).count == len(lengths)


def without_direction():
    """Return a task whose headline is neither better when high nor when low."""
    metric = Metric("length", "length", None, 1, "texts", characters, ratio)
    return types.SimpleNamespace(metrics=(metric,))


@pytest.mark.parametrize(
    "task, changes, expected",
    [
        (Translation("en", "fr"), {}, True),
        (Translation("en", "fr"), {"select": "last"}, False),
        (Translation("en", "fr"), {"select": "cross_entropy"}, False),
        (Translation("en", "fr"), {"steps": 101}, True),
        (Translation("en", "fr"), {"steps": 100}, False),  # one evaluation leaves no choice
        (Translation("en", "fr"), {"steps": 0}, False),
        (Generation(), {}, False),  # bits per byte falls with the cross-entropy
        (without_direction(), {}, False),
    ],
)
def test_texts_are_decoded_only_where_they_choose(task, changes, expected):
    training = dataclasses.replace(Training(steps=400, eval_every=100), **changes)
    assert decodes_texts(task, training) is expected
    if not expected:
        assert manifest_inputs(task, training) == {}


def test_inputs_are_the_settings_of_the_first_way_of_decoding():
    """Beam search decides no checkpoint, so its width can change without training again."""
    training = Training(steps=400, eval_every=100)
    inputs = [manifest_inputs(Translation("en", "fr", decoding=Decoding(beam=beam)), training) for beam in (2, 4)]
    assert inputs[0] == inputs[1]
    longer = manifest_inputs(Translation("en", "fr", decoding=Decoding(length=99)), training)
    assert {name for name in inputs[0] if longer[name] != inputs[0][name]} == {"task.decoding.length"}


@pytest.mark.parametrize(
    "select, values, higher_is_better, best",
    [
        ("headline", [(3.0, 14.6), (3.4, 21.4), (3.2, 20.0)], True, 1),
        ("headline", [(3.0, 14.6), (3.4, 21.4), (3.2, 20.0)], False, 0),
        ("headline", [(3.0, 7.0), (3.4, 7.0)], True, 1),  # of equal ones the latest
        ("headline", [(3.0, 7.0), (3.4, float("nan")), (3.6, float("inf"))], True, 0),
        ("headline", [(3.0, None), (3.4, None)], True, 0),
        ("cross_entropy", [(3.0, 14.6), (3.4, 21.4)], True, 0),
        ("last", [(3.0, 14.6), (3.4, 21.4), (3.2, 20.0)], True, 2),
    ],
)
def test_choice_among_saved_steps(tmp_path, select, values, higher_is_better, best):
    """The checkpoints choose by the value; a step that was stopped before its evaluation is never the best."""
    state = init_state(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(1.0))
    with Checkpoints(tmp_path) as checkpoints:
        for i, (cross_entropy, headline) in enumerate(values):
            value = selection_value(select, i + 1, cross_entropy, headline, higher_is_better)
            checkpoints.save(state._replace(step=jnp.int32(i + 1)), {}, value)
        checkpoints.wait()
        assert checkpoints.best_step() == best + 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"select": "bleu"}, "training.select: expected"),
        ({"select_texts": 0}, "training.select_texts: expected"),
    ],
)
def test_invalid_fields_are_refused(experiment, changes, message):
    training = dataclasses.replace(experiment.teacher.training, **changes)
    teacher = dataclasses.replace(experiment.teacher, training=training)
    with pytest.raises(KdError, match=message):
        check(dataclasses.replace(experiment, teacher=teacher))
