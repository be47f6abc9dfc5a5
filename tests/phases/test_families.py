"""Both families through every phase: one run of each, with a student for each kind of signal and targets."""

import dataclasses
import functools
import io
import json

import chex
import jax
import numpy as np
import pytest

from kd_jax.artifacts import metrics_log
from kd_jax.artifacts.workdir import TEACHER
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.pipeline import Split
from kd_jax.batches.store import Store
from kd_jax.batches.targets import PseudoTargets, TrainTargets
from kd_jax.cli.main import main
from kd_jax.errors import KdError
from kd_jax.evaluation.candidates import load_candidates
from kd_jax.evaluation.speed import drafting_speed
from kd_jax.experiment import Training
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import mse
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Term
from kd_jax.optim.optimizer import Optimizer
from kd_jax.phases import evaluate, prepare, report, student
from kd_jax.phases.check import check
from kd_jax.phases.workdirs import write_experiment
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.sampled import Sampled
from kd_jax.signals.topk import TopK
from kd_jax.students.init import FromTeacher, Random
from kd_jax.tasks.base import Decoding, Sampling
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.sentencepiece import EOS, START
from kd_jax.training.model import initial_params, load_trained
from kd_jax.training.step import eval_step
from tests.helpers.runs import linked_run, run_until_cache, smoke

SIZES = {"d_model": 32, "heads": 2, "d_ff": 64, "dropout": 0.0}
MODELS = {  # of teacher and student
    "encoder_decoder": (EncoderDecoder(1, 2, **SIZES), EncoderDecoder(1, 1, **SIZES)),
    "decoder_only": tuple(DecoderOnly(n, positions="learned", context=256, **SIZES) for n in (2, 1)),
}
OTHER = {"encoder_decoder": "decoder_only", "decoder_only": "encoder_decoder"}
CE = {"ce": Term(cross_entropy)}
TOPK = CE | {"kd": Term(forward_kl, signal=TopK(k=8))}
DRAWN = {"kd": Term(forward_kl, signal=Sampled(draws=9))}
INSIDE = CE | {
    "kd": Term(forward_kl, signal=Online()),
    "hidden": Term(mse, signal=HiddenStates(layers=((0, 1),))),
    "relations": Term(forward_kl, signal=AttentionRelations(layers=((0, 1),), stack="decoder", heads=4)),
}
TARGETS = {
    "best": PseudoTargets("best", beam=2, of="both"),
    "nbest": PseudoTargets("nbest", beam=2),
    "unlabelled": PseudoTargets("best", beam=2, of="unlabelled"),
}
TRAINING = Training(steps=2, tokens_per_batch=512, eval_every=2, optimizer=Optimizer(learning_rate=5e-3, warmup=1))


def build_experiment(root, family):
    """Return the smoke experiment with 80 pairs, 40 sources without references and one bucket."""
    base = smoke(root, ["--source.labelled", "80", "--buckets", "40", "--evaluation.cached-k", "12"])
    whole, small = MODELS[family]
    long = dataclasses.replace(TRAINING, steps=24, eval_every=24)
    teacher = dataclasses.replace(base.teacher, model=whole, training=long)
    plain = dataclasses.replace(base.students["student_scratch"], model=small, training=TRAINING, init=FromTeacher())
    changes = {
        "inside": {"terms": INSIDE},
        "packed": {"terms": TOPK, "training": dataclasses.replace(TRAINING, packed=True)},
        "other": {"terms": TOPK, "model": MODELS[OTHER[family]][1], "init": Random()},
        "best": {"terms": TOPK, "targets": TARGETS["best"]},
        "nbest": {"targets": TARGETS["nbest"]},
        "unlabelled": {"terms": DRAWN, "targets": TARGETS["unlabelled"]},
    }
    students = {name: dataclasses.replace(plain, **fields) for name, fields in changes.items()}
    decoding = Decoding(beam=2, length_ratio=0.0, length=40, sampling=Sampling(temperature=0.5, top_p=0.9))
    evaluation = dataclasses.replace(base.evaluation, texts=6, batch_size=4, speed_texts=1, bootstrap=10)
    parts = {"task": Translation(decoding=decoding), "comparison": None, "evaluation": evaluation}
    return dataclasses.replace(base, teacher=teacher, students=students, **parts)


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def experiment(root, family, lax_promotion):
    return build_experiment(root, family)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """A workdir after all phases."""
    check(experiment)
    workdir = run_until_cache(experiment, tmp_path_factory.mktemp("run"))
    for phase in (student, evaluate, report):
        phase.run(experiment, workdir)
    write_experiment(workdir, experiment)
    return workdir


def test_every_model_is_trained_evaluated_and_reported(experiment, run):
    """With sampled texts and those of beam search; also a student of another family than the teacher's."""
    figures = json.loads((run.report.path / "report.json").read_text())
    assert list(figures["models"]) == list(experiment.recipes) and list(figures["baselines"]) == ["copy"]
    for name, model in figures["models"].items():
        keys = ("bleu", "bleu_beam", "chrf", "cross_entropy", "kl_to_teacher", "decode_tokens_per_second_single")
        assert np.isfinite([model[key] for key in keys]).all()
        rows = (run.evaluation.path / f"{name}.jsonl").read_text().splitlines()
        assert len(rows) == 6 and json.loads(rows[0]).keys() == {"number", "source", "reference", "sampled", "beam"}
    assert figures["models"][TEACHER]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)


def test_a_student_starts_with_its_teachers_layers(experiment, run):
    first, theirs = (
        initial_params(experiment, run, experiment.students["packed"]),
        load_trained(experiment, run, TEACHER)[1],
    )
    chex.assert_trees_all_equal(*jax.device_get(({name: theirs[name] for name in first}, first)))


@pytest.mark.parametrize("drafting, least", [(TEACHER, 1.0), ("packed", 0.0)])
def test_a_model_drafts_for_the_teacher(experiment, run, drafting, least):
    """The teacher accepts all of its own drafts."""
    by_name = {candidate.name: candidate for candidate in load_candidates(experiment, run)}
    split = Split(run.data, "test")
    prompts = [split.read(i).encoded.prompt for i in range(4)]
    tokenizer = tokenizers.load(experiment.tokenizer, run.data)
    texts = experiment.prompt_widths, tokenizer, Decoding(length_ratio=0.0, length=12)
    models = by_name[TEACHER], by_name[drafting]
    figures = drafting_speed(dataclasses.replace(experiment.evaluation, draft=3), *models, prompts, *texts)
    assert least <= figures.draft_acceptance <= 1 and figures.draft_tokens == 3
    assert figures.draft_speedup > 0 and figures.draft_tokens_per_second > 0


@pytest.mark.parametrize("name", ["inside", "packed", "other", "best", "unlabelled"])
def test_the_log_has_every_term(experiment, run, name):
    terms = experiment.students[name].terms
    (row,) = (row for row in metrics_log.read(run.model(name).path / "metrics.jsonl") if "loss" in row)
    assert row.keys() >= terms.keys() and np.isfinite([row[term] for term in terms]).all()


def split_with(workdir, folder, targets=""):
    """Return the training split of a folder with its top-k cache."""
    return Split(folder, "train", {"topk": Store(workdir.cache(targets, "topk").path, "records")})


def test_one_cache_serves_every_layout(experiment, run, family):
    """It is written with one example per row. It is read packed, and by the other family: each target has a record."""
    split, rows = split_with(run, run.data), {"separate": [[i] for i in range(6)], "packed": [[0, 1], [2, 3, 4], [5]]}
    batches = {
        (name, packing): split.batch(models[0].layout(START), rows[packing], 6, Bucket(120, 120))
        for name, models in MODELS.items()
        for packing in rows
    }
    read_of_targets = [
        (batch.targets_BT[batch.mask_BT], {name: x[batch.mask_BT] for name, x in batch.payload["topk"].items()})
        for batch in batches.values()
    ]
    for one in read_of_targets[1:]:
        chex.assert_trees_all_equal(one, read_of_targets[0])
    model, params = load_trained(experiment, run, TEACHER)
    step = jax.jit(functools.partial(eval_step, model=model, terms=TOPK))
    separate, packed = ({k: float(x.mean()) for k, x in step(params, batches[family, p]).items()} for p in rows)
    assert packed == pytest.approx(separate, rel=1e-5, abs=1e-6)
    assert abs(packed["kd"]) < 1e-4  # the teacher agrees with its cache, which is in float16


def test_pseudo_targets_end_with_eos_and_have_mean_weight_one(experiment, run):
    """For sources without references, with references, and both."""
    labelled, unlabelled = (Split(run.data, split) for split in ("train", "unlabelled"))
    assert (len(labelled), len(unlabelled)) == (80, 40) and unlabelled.lengths[:, 1].max() == 0
    prompts = [split.read(i).encoded.prompt.tolist() for split in (labelled, unlabelled) for i in range(len(split))]
    references = [labelled.read(i).encoded.completion.tolist() for i in range(80)]
    for name, targets in TARGETS.items():
        split, unended = (
            Split(run.split(TrainTargets(targets).name), "train"),
            run.split(TrainTargets(targets).name).outputs()["without_hypothesis"],
        )
        rows = [split.read(i) for i in range(len(split))]
        assert all(row.encoded.completion[-1] == EOS and row.encoded.counts.sum() for row in rows)
        np.testing.assert_allclose(np.mean([row.weight for row in rows]), 1.0, rtol=1e-5)
        written = [row.encoded.prompt.tolist() for row in rows]
        if name == "nbest":
            assert list(dict.fromkeys(map(tuple, written))) == list(map(tuple, prompts[:80])) and len(rows) > 80
        else:
            assert written[:80] == prompts[:80] and 80 < len(written) <= 120
            assert set(map(tuple, written[80:])) <= set(map(tuple, prompts[80:]))
            assert len(written) >= 120 - unended
        as_they_are = [row.encoded.completion.tolist() for row in rows[:80]] == references
        assert as_they_are == (name == "unlabelled")


def answers(run, monkeypatch, capsys, *options):
    """Return what `generate` answers to three lines, the second empty."""
    text = "one red houses\n\ntwo blue birds and five white lamps\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["generate", "--workdir", str(run.path), "--model", "packed", *options]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4 and lines[1] == lines[3] == ""
    return lines


def test_generate_samples_by_its_seed_and_runs_beam_search(run, monkeypatch, capsys):
    sampling = ["--temperature", "5", "--top-k", "30", "--min-p", "0.001", "--length", "12"]
    first, again, other = (answers(run, monkeypatch, capsys, *sampling, "--seed", seed) for seed in ("3", "3", "4"))
    assert first == again != other
    answers(run, monkeypatch, capsys, "--beam", "2", "--length", "12")


def test_generate_names_the_line_of_a_prompt_that_is_too_long(run, family, monkeypatch, capsys):
    if family == "encoder_decoder":
        pytest.skip("its positions have no bound")
    text = "one red houses\n" + "seven white clouds and " * 40
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["generate", "--workdir", str(run.path), "--model", "packed"]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("error: standard input, line 2: prompt: expected fewer than 256 tokens, got ")


def test_prompts_count_only_in_decoder_only_models(experiment, run, family, tmp_path):
    """Every token is a target; an encoder-decoder is refused."""
    counted = dataclasses.replace(experiment, task=Translation(counted="all"))
    if family == "encoder_decoder":
        with pytest.raises(
            KdError, match="teacher.task.counted: expected completion, since an encoder-decoder predicts no prompts"
        ):
            check(counted)
        return
    counted = dataclasses.replace(counted, students={"packed": experiment.students["packed"]})
    check(counted)
    workdir = linked_run(run, tmp_path)
    prepare.run(counted, workdir)
    batch = Split(workdir.data, "train").batch(MODELS[family][0].layout(START), [[0, 1], [2]], 2, Bucket(80, 80))
    np.testing.assert_array_equal(batch.mask_BT, batch.inputs.decoder.segment_BT > 0)
