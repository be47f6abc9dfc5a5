"""The texts of a round as a split: which examples get one, whose draws, the teacher's signals, and the losses on it."""

import dataclasses
import functools
import json
import os
import signal

import chex
import jax
import numpy as np
import pytest

from kd_jax import DecoderOnly, FromTeacher, Random, Rounds, Schedule
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import PooledExamples
from kd_jax.batches.pipeline import Split, TrainBatches, with_references
from kd_jax.batches.store import Store
from kd_jax.errors import KdError, Preempted
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.objective.terms import Term
from kd_jax.phases import prepare, teacher
from kd_jax.runtime import preemption
from kd_jax.signals.topk import TopK
from kd_jax.teaching.own_texts import OwnTextWriter
from kd_jax.teaching.rounds import TEXTS, write_signals, write_texts
from kd_jax.teaching.teacher import Teacher
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.model import initial_params, load_trained
from kd_jax.training.on_policy import pooled_examples
from kd_jax.training.step import count_tokens, loss_fn
from tests.helpers.batches import random_examples
from tests.helpers.divergences import log_softmax64
from tests.helpers.own_texts import ListedSplit, examples_in
from tests.helpers.runs import linked_run, smoke

END, K, STEPS = 2, 60, 6
SHORT = """
--source.examples 60 --teacher.training.steps 6 --teacher.training.eval-every 6
--teacher.training.optimizer.warmup 2 --students.student_kd.training.optimizer.warmup 2
"""
TERMS = {"ce": Term(cross_entropy, weight=0.4), "kd": Term(forward_kl, weight=0.6, signal=TopK(k=K))}
FAMILIES = {
    "encoder_decoder": ({}, FromTeacher()),
    "decoder_only": ({"model": DecoderOnly(1, d_model=16, heads=2, d_ff=32, dropout=0.0)}, Random()),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def base(root, lax_promotion):
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    """Return a workdir with data and a teacher, an encoder-decoder."""
    run = Workdir(tmp_path_factory.mktemp("run"))
    for phase in (prepare, teacher):
        phase.run(base, run)
    return run


def with_rounds(base, rule, family="encoder_decoder", **changes):
    """Return the experiment with one student "it" of a family that trains in rounds."""
    recipe, (model, init) = base.students["student_kd"], FAMILIES[family]
    training = dataclasses.replace(recipe.training, steps=STEPS)
    parts = {"targets": rule, "terms": TERMS, "init": init, "training": training} | model | changes
    return dataclasses.replace(base, comparison=None, students={"it": dataclasses.replace(recipe, **parts)})


def write_round(experiment, run, number=0, examples=None, params=None):
    """Write the texts of a round with the student's first parameters; return its split."""
    recipe = experiment.recipes["it"]
    if examples is None:
        split = with_references(run.data, recipe.references)
        examples = pooled_examples(experiment, run, recipe, recipe.targets, split)
    params = initial_params(experiment, run, recipe) if params is None else params
    return Split(write_texts(experiment, run, "it", number, examples, params), "train")


def segments(split):
    return [split.read(i) for i in range(len(split))]


def key(segment):
    """Return what an example is: its tokens and which count."""
    return tuple(tuple(x.tolist()) for x in segment.encoded)


def text_of(segment):
    encoded = segment.encoded
    return tuple(encoded.completion[encoded.counts[len(encoded.prompt) :]].tolist())


def lines_of(run, number=0):
    """Return the lines of a round's own texts."""
    lines = [json.loads(line) for line in (run.round("it", number).path / TEXTS).read_text().splitlines()]
    return [line for line in lines if line["own"]]


def texts_by_prompt(run, number):
    return {tuple(line["prompt_ids"]): line["ids"] for line in lines_of(run, number)}


def test_rounds_of_the_same_student_differ_by_their_draws_alone(base, workdir, tmp_path):
    """At temperature 0, without draws, the texts are the same; `examples` draws other examples in each round."""
    texts = {}
    for temperature in (1.0, 0.0):
        run = linked_run(workdir, tmp_path / str(temperature), "data", TEACHER)
        experiment = with_rounds(base, Rounds(share=1.0, count=2, temperature=temperature, examples=20))
        splits = [write_round(experiment, run, number) for number in range(2)]
        assert [len(split) for split in splits] == [20, 20]
        texts[temperature] = [texts_by_prompt(run, number) for number in range(2)]
        assert texts[temperature][0].keys() != texts[temperature][1].keys()
    both = texts[1.0][0].keys() & texts[1.0][1].keys()
    assert len(both) > 4
    assert sum(texts[1.0][0][prompt] != texts[1.0][1][prompt] for prompt in both) > len(both) / 2
    assert all(texts[0.0][0][prompt] == texts[0.0][1][prompt] for prompt in both)


def test_share_decides_which_examples_are_own_and_the_others_are_those_of_the_data(base, workdir, tmp_path):
    """A Schedule's share is that of a round's first update: of two rounds of three updates, the first and fourth."""
    data = {key(segment) for segment in segments(with_references(workdir.data, 0))}
    prompts = {one[0] for one in data}
    ramp = Schedule(0.0, 1.0, steps=1, begin=2)  # 0 up to update 2, counted from 0, 1 from update 3
    expected = {("none", 0): 0, ("all", 0): len(data), ("ramp", 0): 0, ("ramp", 1): len(data)}
    found = {}
    rules = {"none": Rounds(share=0.0, count=2), "half": Rounds(count=2), "all": Rounds(share=1.0, count=2)}
    for name, rule in {**rules, "ramp": Rounds(share=ramp, count=2)}.items():
        run = linked_run(workdir, tmp_path / name, "data", TEACHER)
        for number in range(2 if name == "ramp" else 1):
            examples = segments(write_round(with_rounds(base, rule), run, number))
            assert {tuple(one.encoded.prompt.tolist()) for one in examples} == prompts and len(examples) == len(data)
            assert {key(one) for one in examples if not one.own} <= data
            assert all(one.weight == 1.0 for one in examples)
            found[name, number] = sum(one.own for one in examples)
    half = found.pop(("half", 0))
    assert found == expected
    assert abs(half - len(data) / 2) < 4 * np.sqrt(len(data) / 4)


def test_files_and_figures_of_a_round_by_hand(base, workdir, tmp_path):
    """Each line of the file is the own text of a record, in the order of records."""
    run, experiment = linked_run(workdir, tmp_path, "data", TEACHER), with_rounds(base, Rounds(share=0.5, length=12))
    split = write_round(experiment, run)
    own = [segment for segment in segments(split) if segment.own]
    lines, outputs = lines_of(run), run.round("it", 0).outputs()
    tokenizer = tokenizers.load(experiment.tokenizer, run.data)
    assert [tuple(line["ids"]) for line in lines] == [text_of(one) for one in own]
    assert [line["prompt_ids"] for line in lines] == [one.encoded.prompt.tolist() for one in own]
    assert any(line["ended"] for line in lines) and max(len(line["ids"]) for line in lines) <= 12
    for line in lines:
        assert line["ended"] == (line["ids"][-1] == END) and END not in line["ids"][:-1]
        assert line["text"] == tokenizer.decode([i for i in line["ids"] if i != END])
        assert line["prompt"] == tokenizer.decode(line["prompt_ids"])
    pairs = [list(zip(line["ids"], line["ids"][1:], strict=False)) for line in lines]
    assert outputs["examples"] == len(split) and outputs["own_texts"] == len(lines)
    assert outputs["own_tokens"] == sum(len(line["ids"]) for line in lines)
    assert outputs["own_length"] == pytest.approx(np.mean([len(line["ids"]) for line in lines]))
    assert outputs["own_cut"] == pytest.approx(np.mean([not line["ended"] for line in lines]))
    assert outputs["own_distinct_2"] == pytest.approx(sum(len(set(p)) for p in pairs) / sum(map(len, pairs)))
    assert outputs["sampling_seconds"] > 0


class WeightedSplit(ListedSplit):
    """Examples whose weights are 0.5, 1.5, 0.5, ..."""

    def read(self, i):
        return super().read(i)._replace(weight=0.5 + int(i) % 2)


def test_examples_without_a_target_are_own_and_the_others_keep_their_weights(base, workdir, tmp_path):
    """A prompt that is longer than the last bucket is left out if its example has no target, else the target stays."""
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    listed = random_examples(1, [(3 + i, 5) for i in range(20)] + [(40, 5)], 60)
    free = random_examples(2, [(4 + i, 1) for i in range(6)] + [(40, 1)], 60)
    examples = PooledExamples(WeightedSplit(listed), [ListedSplit(free)])
    written = segments(write_round(with_rounds(base, Rounds(share=0.5)), run, examples=examples))
    number_of = {tuple(one.prompt.tolist()): n for n, one in enumerate([*listed, *free])}
    assert len(written) == len(number_of) - 1 == 27
    for segment in written:
        number = number_of[tuple(segment.encoded.prompt.tolist())]
        assert number != 27  # the long one without a target
        assert segment.own or number < 21
        assert segment.weight == (1.0 if segment.own else 0.5 + number % 2)
        assert not (segment.own and number == 20)
        if not segment.own:
            chex.assert_trees_all_equal(segment.encoded, listed[number])
    assert 4 < sum(segment.own for segment in written) < 27 and any(not segment.own for segment in written)


def test_unlabelled_prompts_are_those_without_a_reference(base, workdir, tmp_path):
    """Of a student with 20 references that writes no text for them."""
    run = linked_run(workdir, tmp_path, "data", TEACHER)
    experiment = with_rounds(base, Rounds(share=0.0, unlabelled=True), references=20)
    known = {key(segment) for segment in segments(with_references(run.data, 20))}
    prompts = {tuple(segment.encoded.prompt.tolist()) for segment in segments(Split(run.data, "train"))}
    written = segments(write_round(experiment, run))
    assert len(known) == 20 and {key(segment) for segment in written if not segment.own} == known
    own = {tuple(segment.encoded.prompt.tolist()) for segment in written if segment.own}
    assert own and own == prompts - {one[0] for one in known}


def test_a_round_is_refused_for_other_inputs_by_name(base, workdir, tmp_path):
    """A finished one is used as it is."""
    run, rule = linked_run(workdir, tmp_path, "data", TEACHER), Rounds(share=0.5, count=2, examples=10)
    experiment = with_rounds(base, rule)
    params = initial_params(experiment, run, experiment.recipes["it"])
    write_round(experiment, run)
    manifest = run.round("it", 0).path / "manifest.json"
    before = manifest.read_bytes()
    write_round(experiment, run)
    assert manifest.read_bytes() == before
    other_params = jax.tree.map(lambda x: x + 1e-3, params)
    task = dataclasses.replace(base.task, decoding=dataclasses.replace(base.task.decoding, length=9))
    refused = {
        "expected targets.share = 0.5, .* got 0.25": (dataclasses.replace(rule, share=0.25), {}, params),
        "expected targets.temperature = 1.0, .* got 0.5": (dataclasses.replace(rule, temperature=0.5), {}, params),
        "expected targets.examples = 10, .* got 11": (dataclasses.replace(rule, examples=11), {}, params),
        "expected seed = 0, .* got 3": (rule, {"seed": 3}, params),
        "expected task.decoding.length = .*, .* got 9": (rule, {"task": task}, params),
        "expected to be made with student ": (rule, {}, other_params),
    }
    for message, (other, changes, some_params) in refused.items():
        changed = dataclasses.replace(with_rounds(base, other), **changes)
        with pytest.raises(KdError, match=f"rounds/0: {message}") as error:
            write_round(changed, run, params=some_params)
        assert "\n" not in str(error.value)


def test_a_stop_while_texts_are_written_leaves_no_finished_round(base, workdir, tmp_path, monkeypatch):
    """The same call writes the texts of a run without a stop."""
    runs = [linked_run(workdir, tmp_path / name, "data", TEACHER) for name in ("stopped", "whole")]
    experiment, write = with_rounds(base, Rounds(share=1.0, examples=10)), OwnTextWriter.write

    def stop(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(self, *arguments, **options)

    with monkeypatch.context() as patch, preemption.handle_signals(resumes=True), pytest.raises(Preempted):
        patch.setattr(OwnTextWriter, "write", stop)
        write_round(experiment, runs[0])
    assert not runs[0].round("it", 0).finished()
    for run in runs:
        write_round(experiment, run)
    assert lines_of(runs[0]) == lines_of(runs[1]) and len(lines_of(runs[0])) == 10
    digests = [run.round("it", 0).outputs()["digest"] for run in runs]
    assert digests[0] == digests[1]


@functools.cache
def compiled_loss(model, names):
    loss = functools.partial(loss_fn, model=model, terms={name: TERMS[name] for name in names})
    run = lambda params, batch: loss((params, {}), batch, count_tokens(batch), None, None)  # noqa: E731
    return jax.jit(jax.value_and_grad(run, has_aux=True))


@pytest.fixture(scope="module", params=FAMILIES)
def judged(request, base, workdir, tmp_path_factory):
    """Return (experiment, run, split with signals) of a round; the teacher is an encoder-decoder for both families."""
    run = linked_run(workdir, tmp_path_factory.mktemp("judged"), "data", TEACHER)
    experiment = with_rounds(base, Rounds(share=0.5), request.param)
    write_round(experiment, run)
    write_signals(Teacher(experiment, run), "it", 0)
    return (
        experiment,
        run,
        Split(run.round("it", 0), "train", {"topk": Store(run.round_cache("it", 0, "topk").path, "records")}),
    )


def test_signals_are_the_teachers_for_each_token_of_each_text(base, judged):
    """Of all 60 tokens, against float64 softmax of the teacher's logits, own texts and references."""
    experiment, run, split = judged
    model, params = load_trained(experiment, run, TEACHER)
    layout = experiment.teacher.model.layout(run.data.outputs()["start"])
    logits = jax.jit(lambda inputs: model.head(params).logits(model.apply(params, inputs)))
    examples, seen = segments(split), set()
    for bucket in experiment.shapes:
        fits = [
            one
            for one in examples
            if (layout.sizes(np.array(list(map(len, one.encoded[:2])))) <= np.asarray(bucket)).all()
        ]
        some = [next(one for one in fits if one.own), next(one for one in fits if not one.own)]
        batch = layout.batch([[one._replace(records={})] for one in some], len(some), bucket, {})
        logp_BTV = log_softmax64(logits(batch.inputs))
        for b, one in enumerate(some):
            record, want_TV = one.records["topk"], logp_BTV[b][batch.mask_BT[b]]
            got_TV = np.zeros_like(want_TV)
            np.put_along_axis(got_TV, record["ids"].astype(int), log_softmax64(record["logits"].astype(np.float64)), -1)
            np.testing.assert_allclose(np.exp(got_TV), np.exp(want_TV), atol=2e-3)
            assert len(want_TV) == one.encoded.counts.sum()
            seen.add(one.own)
    assert seen == {False, True}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_cross_entropy_reads_no_own_text_of_a_round(judged, packed):
    """Other ids in place of own targets change no bit; a batch of own texts alone has a gradient of exactly 0."""
    experiment, run, split = judged
    recipe, data = experiment.recipes["it"], run.data.outputs()
    model, layout = recipe.model.build(data["vocab_size"]), recipe.model.layout(data["start"])
    params = initial_params(experiment, run, recipe)
    options = {"tokens_per_batch": 8 * sum(experiment.shapes[-1]), "divisor": 1, "seed": 0, "packed": packed}
    batch = TrainBatches(split, layout, experiment.shapes[-1:], **options)[0]
    read_BT = batch.mask_BT & ~batch.own_BT
    assert read_BT.any() and batch.own_BT.any()
    texts = {text_of(segment): segment.own for segment in segments(split)}
    assert len(texts) > 50 and len({False, True} & set(texts.values())) == 2
    for row in examples_in(batch):
        text = tuple(token for token, counts in zip(row.targets, row.counts, strict=True) if counts)
        assert row.own == texts[text]
    (_, sums), gradient = compiled_loss(model, ("ce",))(params, batch)
    logits_BTV = model.head(params).logits(model.apply(params, batch.inputs))
    nll_BT = -np.take_along_axis(log_softmax64(logits_BTV), np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    assert sums["ce"].weight == read_BT.sum()
    np.testing.assert_allclose(sums["ce"].mean(), nll_BT[read_BT].mean(), rtol=1e-5)
    other = batch._replace(targets_BT=np.where(batch.own_BT, (batch.targets_BT + 5) % 60, batch.targets_BT))
    chex.assert_trees_all_equal(compiled_loss(model, ("ce",))(params, other)[1], gradient)
    own_alone = batch._replace(mask_BT=batch.mask_BT & batch.own_BT)
    (loss, _), gradient = compiled_loss(model, ("ce",))(params, own_alone)
    assert loss == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    (loss, sums), gradient = compiled_loss(model, ("kd",))(params, own_alone)
    assert loss > 1e-4 and sums["kd"].weight == own_alone.mask_BT.sum()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
