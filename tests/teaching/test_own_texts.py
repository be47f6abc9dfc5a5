"""Texts that a student writes while it trains: draws, agreement with the training step, exact expectations."""

import dataclasses
import functools
import itertools
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import Generation, load_experiment
from kd_jax.batches.layouts import Bucket, EncoderDecoderLayout
from kd_jax.batches.on_policy import OnPolicy, Prompt
from kd_jax.decoding.text import TextTokens
from kd_jax.experiment import resolve
from kd_jax.losses import divergence
from kd_jax.models.base import Head, Model
from kd_jax.objective.terms import Term
from kd_jax.runtime import preemption
from kd_jax.runtime.progress import Bar
from kd_jax.signals.online import Online
from kd_jax.tasks.base import Decoding
from kd_jax.teaching.own_texts import OwnTextWriter, distinct_pairs, own_text_step
from kd_jax.training.step import count_tokens, loss_fn
from tests.helpers.batches import random_examples
from tests.helpers.divergences import log_softmax64, reference64
from tests.helpers.families import FAMILIES, V, each_family, network
from tests.helpers.own_texts import END, examples_in, own_batches

START, PREFIX, SUPPRESSED = 1, 3, 17
RULE = OnPolicy(share=1.0)
BUCKETS = (Bucket(5, 5), Bucket(9, 12))
EXAMPLES = random_examples(1, [(1 + i % 9, 1 + i % 11) for i in range(24)], V)
TOKENIZER = types.SimpleNamespace(
    vocab_size=V,
    start=START,
    ends=(END,),
    forced_prefix=(PREFIX,),
    suppress_tokens=(SUPPRESSED,),
    suppress_first=(),
    force_end=True,
)


@functools.cache
def sharp_params(architecture):
    """Return parameters of a student that is surer than a random one, so that texts and likelihoods differ."""
    return jax.tree.map(lambda x: 1.5 * x, network(architecture)[1])


@pytest.fixture(scope="module")
def smoke(root):
    buckets = {"buckets": tuple(b.completion for b in BUCKETS), "prompt_buckets": tuple(b.prompt for b in BUCKETS)}
    return dataclasses.replace(load_experiment(root / "experiments/configs/smoke.py"), backend="jit", **buckets)


def make_writer(smoke, architecture, rule=RULE, tokenizer=TOKENIZER, **changes):
    recipe = dataclasses.replace(smoke.students["student_scratch"], model=architecture, targets=rule)
    experiment = resolve(dataclasses.replace(smoke, students={"it": recipe}, comparison=None, **changes))
    return OwnTextWriter(experiment, experiment.recipes["it"], rule, tokenizer)


def write(writer, architecture, prompts):
    texts = writer.write(sharp_params(architecture), prompts, Bar("texts", 1))
    return [text.tolist() for text in texts]


PROMPTS = [Prompt(one.prompt, n, 10) for n, one in enumerate(EXAMPLES)]


@each_family
def test_a_second_visit_of_a_prompt_has_another_text(smoke, architecture):
    """The parameters are the same. One seed always gives the same texts, another one others."""
    writer = make_writer(smoke, architecture)
    first = write(writer, architecture, PROMPTS)
    again = write(writer, architecture, [prompt._replace(number=prompt.number + 24) for prompt in PROMPTS])
    other_seed = write(make_writer(smoke, architecture, seed=1), architecture, PROMPTS)
    for others in (again, other_seed):
        assert sum(a != b for a, b in zip(first, others, strict=True)) > 12
    assert write(make_writer(smoke, architecture), architecture, PROMPTS) == first


@pytest.mark.parametrize("family, backend", [("encoder_decoder", "pmap"), ("decoder_only", "mesh")])
def test_texts_depend_neither_on_other_prompts_nor_on_devices(smoke, family, backend):
    architecture = FAMILIES[family]
    writer = make_writer(smoke, architecture)
    texts = write(writer, architecture, PROMPTS)
    alone = [write(writer, architecture, [prompt])[0] for prompt in PROMPTS[:3]]
    assert alone == texts[:3]
    assert write(writer, architecture, PROMPTS[::-1]) == texts[::-1]
    assert write(make_writer(smoke, architecture, backend=backend), architecture, PROMPTS) == texts


@each_family
def test_no_end_is_forced_and_no_suppressed_token_is_written(smoke, architecture):
    """The tokenizer forces an end at the limit in decoding; a text of the student's own distribution has none."""
    rule = OnPolicy(length=6, temperature=3.0)
    prompts = [Prompt(one.prompt, n, 6) for n, one in enumerate(EXAMPLES * 8)]
    texts = write(make_writer(smoke, architecture, rule), architecture, prompts)
    cut = [text for text in texts if END not in text]
    assert cut and all(len(text) == 6 for text in cut)
    assert all(text.index(END) == len(text) - 1 for text in texts if END in text)
    written = set(itertools.chain(*texts))
    assert written == set(range(V)) - {SUPPRESSED}
    short = write(make_writer(smoke, architecture, rule), architecture, [p._replace(room=2) for p in prompts])
    assert short == [text[:2] for text in texts]


def test_a_stop_while_texts_are_written_returns_none(smoke):
    architecture = FAMILIES["encoder_decoder"]
    writer = make_writer(smoke, architecture)
    with preemption.handle_signals(resumes=True):
        os.kill(os.getpid(), signal.SIGTERM)
        assert writer.write(sharp_params(architecture), PROMPTS, Bar("texts", 1)) is None


@functools.cache
def compiled(architecture):
    """Return jitted functions: (params, inputs) -> logits_BTV, and (params, prompts, ids_BT) -> logp_BTV by steps."""
    model = network(architecture)[0]

    def stepwise_logp(params, prompts, ids_BT):
        cache = model.prefill(params, prompts, ids_BT.shape[1])
        before_BT = jnp.concatenate([prompts.decoder.ids_BT[:, -1:], ids_BT[:, :-1]], axis=1)

        def step(cache, token_B):
            logits_BV, cache = model.step(params, cache, token_B)
            return cache, jax.nn.log_softmax(logits_BV)

        return jax.lax.scan(step, cache, before_BT.T)[1].swapaxes(0, 1)

    return jax.jit(lambda params, inputs: model.head(params).logits(model.apply(params, inputs))), jax.jit(
        stepwise_logp
    )


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each_family
def test_the_step_has_the_likelihood_of_decoding(smoke, architecture, packed):
    """Of ragged prompts, behind a forced prefix: the step's log p of each written token, to 1e-5."""
    params, (logits, stepwise_logp) = sharp_params(architecture), compiled(architecture)
    layout, writer = architecture.layout(START, (PREFIX,)), make_writer(smoke, architecture)
    batches = own_batches(EXAMPLES, OnPolicy(share=1.0, pool=4), layout, BUCKETS, packed=packed, tokens_per_batch=60)
    prompts = batches.begin(0)
    written = writer.write(params, prompts, Bar("texts", 1))
    batches.fill(written)
    ids_BT = np.zeros((64, BUCKETS[-1].prompt + BUCKETS[-1].completion), np.int32)
    for b, text in enumerate(written):
        ids_BT[b, : len(text)] = text
    inputs = layout.prompts([prompt.ids for prompt in prompts], 64, BUCKETS[-1].prompt)
    logp_BTV = np.asarray(stepwise_logp(params, inputs, ids_BT), np.float64)
    logp_BT = np.take_along_axis(logp_BTV, ids_BT[..., None], -1)[..., 0]
    expected = {1 + len(EXAMPLES) + p.number: logp_BT[b, : len(written[b])] for b, p in enumerate(prompts)}
    found = {}
    while not batches.is_empty:
        batch = next(batches)
        logp_BTV = log_softmax64(logits(params, batch.inputs))
        logp_BT = np.take_along_axis(logp_BTV, np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
        segment_BT = np.where(batch.mask_BT, batch.inputs.decoder.segment_BT, 0)
        found |= {int(segment): logp_BT[segment_BT == segment] for segment in np.unique(segment_BT[segment_BT > 0])}
    assert len(found) > 6 and max(map(len, found.values())) > 4 and np.concatenate([*found.values()]).std() > 0.5
    assert set(found) == set(expected)
    for segment, one in found.items():
        np.testing.assert_allclose(one, expected[segment], atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each_family
def test_at_temperature_0_each_token_is_the_steps_most_likely(smoke, architecture, packed):
    """So a shift by one between texts and the step's logits cannot pass."""
    params, (logits, _) = sharp_params(architecture), compiled(architecture)
    layout, rule = architecture.layout(START, (PREFIX,)), OnPolicy(share=1.0, pool=4, temperature=0.0)
    writer = make_writer(smoke, architecture, rule)
    batches = own_batches(EXAMPLES, rule, layout, BUCKETS, packed=packed, tokens_per_batch=60)
    batches.fill(writer.write(params, batches.begin(0), Bar("texts", 1)))
    equal, one_late, one_early = [], [], []
    while not batches.is_empty:
        batch = next(batches)
        logits_BTV = np.array(logits(params, batch.inputs))
        logits_BTV[..., SUPPRESSED] = -np.inf
        best_BT, targets_BT, both_BT = (
            logits_BTV.argmax(-1),
            batch.targets_BT,
            batch.mask_BT[:, 1:] & batch.mask_BT[:, :-1],
        )
        equal += (best_BT == targets_BT)[batch.mask_BT].tolist()
        one_late += (best_BT[:, 1:] == targets_BT[:, :-1])[both_BT].tolist()
        one_early += (best_BT[:, :-1] == targets_BT[:, 1:])[both_BT].tolist()
    assert len(equal) > 30 and all(equal)
    assert not all(one_late) and not all(one_early)


def test_without_prompts_texts_continue_beginnings_as_the_step_reads_them(smoke):
    """Beginnings of 1 to 4 tokens; at temperature 0 each written token is the step's most likely."""
    architecture, rule = FAMILIES["decoder_only"], OnPolicy(share=1.0, pool=9, temperature=0.0, beginning=4)
    params, (logits, _) = sharp_params(architecture), compiled(architecture)
    tokenizer = types.SimpleNamespace(**vars(TOKENIZER) | {"forced_prefix": (), "suppress_tokens": ()})
    recipe = dataclasses.replace(smoke.students["student_scratch"], model=architecture)
    changes = {"task": Generation(), "buckets": (6, 14), "prompt_buckets": (), "teacher": recipe}
    writer = make_writer(smoke, architecture, rule, tokenizer, **changes)
    examples = random_examples(2, [(3 * (i % 2), 2 + i % 9) for i in range(20)], V)
    buckets = (Bucket(0, 6), Bucket(0, 14))
    batches = own_batches(examples, rule, architecture.layout(START), buckets, prompted=False)
    prompts = batches.begin(0)
    assert {len(prompt.ids) for prompt in prompts} >= {2, 3, 4}
    texts = writer.write(params, prompts, Bar("texts", 1))
    assert any(len(text) > 3 for text in texts)
    batches.fill(texts)
    rows = 0
    while not batches.is_empty:
        batch = next(batches)
        best_BT = np.asarray(logits(params, batch.inputs)).argmax(-1)
        assert (best_BT == batch.targets_BT)[batch.mask_BT].all()
        rows += len(examples_in(batch))
    assert rows > 6


# A student and a teacher with four tokens, whose next token depends on the position and on the last token.
TINY_V, TINY_T, TINY_END, TEXTS = 4, 3, 3, 8000
TABLES = 1.5 * np.random.default_rng(4).normal(size=(2, TINY_T, TINY_V, TINY_V))
TINY = Model(
    init=lambda key: {},
    apply=lambda params, inputs, dropout_key=None: params["t"][inputs.decoder.position_BT, inputs.decoder.ids_BT],
    taps=lambda params, inputs, dropout_key=None: (params["t"][inputs.decoder.position_BT, inputs.decoder.ids_BT], {}),
    head=lambda params: Head(jnp.eye(TINY_V)),
    prefill=lambda params, inputs, room: jnp.int32(0),
    extend=lambda params, position, ids_BT: (params["t"][position, ids_BT], position + 1),
)


def tiny_params(which):
    return {"t": jnp.asarray(TABLES[which], jnp.float32)}


@functools.cache
def tiny_batch(temperature):
    """Return a batch of own texts of the tiny student: the prompts are equal, their numbers are not."""
    prompt = random_examples(0, [(1, TINY_T)], TINY_V + 4)[0]
    rule, bucket = OnPolicy(share=1.0, pool=1, temperature=temperature), Bucket(1, TINY_T)
    batches = own_batches([prompt] * TEXTS, rule, EncoderDecoderLayout(0), (bucket,), tokens_per_batch=TEXTS * TINY_T)
    prompts = batches.begin(0)
    inputs = EncoderDecoderLayout(0).prompts([prompt.ids for prompt in prompts], TEXTS, 1)
    decoding = Decoding(beam=1, length=TINY_T, length_ratio=0.0, sampling=rule.sampling(0))
    step = functools.partial(
        own_text_step,
        model=TINY,
        architecture=types.SimpleNamespace(context=0),
        decoding=decoding,
        tokens=TextTokens(ends=(TINY_END,)),
        longest=TINY_T,
    )
    inputs = inputs._replace(index_B=np.int32([prompt.number for prompt in prompts]))
    batches.fill([ids[ids >= 0] for ids in np.asarray(jax.jit(step)(tiny_params(0), inputs))])
    return next(batches)


def sequences():
    """Yield every text of the tiny student: up to the end token, or of full length."""
    for ids in itertools.product(range(TINY_V), repeat=TINY_T):
        cut = ids[: ids.index(TINY_END) + 1] if TINY_END in ids else ids
        if ids == cut + (0,) * (TINY_T - len(cut)):
            yield cut


def rows_of(table_TVV, ids):
    """Return the logits before each token of a text, float64 [len(ids), V]."""
    return np.stack([table_TVV[t, last] for t, last in enumerate((0, *ids[:-1]))])


def expectation(temperature, of_text):
    """Return (mean, standard deviation) of a function of a text, exactly, by all texts of the sampler."""
    texts = list(sequences())
    logp = [log_softmax64(rows_of(TABLES[0], ids) / temperature)[range(len(ids)), ids].sum() for ids in texts]
    p, values = np.exp(logp), np.array([of_text(ids) for ids in texts])
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12)
    mean = (p * values).sum()
    return mean, np.sqrt((p * (values - mean) ** 2).sum())


@functools.cache
def tiny_loss(name, teacher, temperature):
    """Return the sum of a loss over all texts of the tiny student."""
    loss = functools.partial(
        loss_fn, model=TINY, teacher=TINY, terms={"kd": Term(getattr(divergence, name), signal=Online())}
    )
    batch = tiny_batch(temperature)
    run = jax.jit(lambda s, t, batch: loss((s, {}), batch, count_tokens(batch), None, t)[1]["kd"])
    return jax.device_get(run(tiny_params(0), tiny_params(teacher), batch))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "total_variation"])
def test_the_mean_over_own_texts_is_the_expectation_over_all_texts(name, temperature):
    """Within 4.5 standard errors of 8000 texts; the sampler's temperature is not the loss's."""
    value = lambda ids: reference64(  # noqa: E731
        name, 0.5, log_softmax64(rows_of(TABLES[1], ids)), log_softmax64(rows_of(TABLES[0], ids))
    )[0].sum()
    mean, deviation = expectation(temperature, value)
    got = tiny_loss(name, 1, temperature).value / TEXTS
    assert abs(got - mean) < 4.5 * deviation / np.sqrt(TEXTS)
    other_mean, _ = expectation(3.0 - temperature, value)
    assert abs(got - other_mean) > 4.5 * deviation / np.sqrt(TEXTS)  # the test tells both temperatures apart


def test_the_on_policy_reverse_kl_is_that_of_whole_texts():
    """By the chain rule: the sum over tokens is in the mean KL(student || teacher) of the distributions of texts."""
    logp = lambda which, ids: log_softmax64(rows_of(TABLES[which], ids))[range(len(ids)), ids].sum()  # noqa: E731
    texts = list(sequences())
    assert len(texts) == 1 + 3 + 9 * 4
    kl = sum(np.exp(logp(0, ids)) * (logp(0, ids) - logp(1, ids)) for ids in texts)
    by_token = lambda ids: reference64(  # noqa: E731
        "reverse_kl", 0.5, log_softmax64(rows_of(TABLES[1], ids)), log_softmax64(rows_of(TABLES[0], ids))
    )[0].sum()
    mean, deviation = expectation(1.0, by_token)
    np.testing.assert_allclose(mean, kl, rtol=1e-12)
    assert abs(tiny_loss("reverse_kl", 1, 1.0).value / TEXTS - kl) < 4.5 * deviation / np.sqrt(TEXTS)


@pytest.mark.parametrize("loss_temperature", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_temperatures_of_the_draws_and_of_the_loss_are_apart(temperature, loss_temperature):
    """T^2 KL at the loss's temperature on the sampled ids, against float64, whatever temperature drew them."""
    batch, signal_ = tiny_batch(temperature), Online(temperature=loss_temperature)
    terms = {"kd": Term(divergence.reverse_kl, signal=signal_)}
    loss = functools.partial(loss_fn, model=TINY, teacher=TINY, terms=terms)
    run = jax.jit(lambda s, t, batch: loss((s, {}), batch, count_tokens(batch), None, t)[0])
    total = 0.0
    for targets, counts in zip(batch.targets_BT.tolist(), batch.mask_BT.tolist(), strict=True):
        ids = targets[: sum(counts)]
        p, q = (log_softmax64(rows_of(TABLES[which], ids) / loss_temperature) for which in (1, 0))
        total += loss_temperature**2 * reference64("reverse_kl", 0.5, p, q)[0].sum()
    got = run(tiny_params(0), tiny_params(1), batch)
    np.testing.assert_allclose(got, total / batch.mask_BT.sum(), rtol=1e-5)


def test_number_of_counted_tokens_is_that_of_the_texts():
    mean, deviation = expectation(1.0, len)
    weight = tiny_loss("reverse_kl", 1, 1.0).weight
    assert abs(weight / TEXTS - mean) < 4.5 * deviation / np.sqrt(TEXTS)
    assert weight == tiny_batch(1.0).mask_BT.sum()


@pytest.mark.parametrize("name", [loss.__name__ for loss in divergence.ALL if loss is not divergence.taid])
def test_losses_on_own_texts_are_0_for_the_teacher_itself_and_else_positive(name):
    count = TEXTS * TINY_T
    assert abs(tiny_loss(name, 0, 1.0).value) < 1e-6 * count
    assert tiny_loss(name, 1, 1.0).value > 1e-3 * count


def test_distinct_pairs_by_hand():
    """Pairs 55, 55, 55 are one of three; texts of one token have none."""
    assert distinct_pairs([np.array([5, 5, 5, 5])]) == 1 / 3
    assert distinct_pairs([np.array([5, 6]), np.array([5, 6])]) == 1.0  # each text by itself
    assert distinct_pairs([np.array([5])]) == distinct_pairs([]) == 1.0
