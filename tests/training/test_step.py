"""The step: counts first, gradients added; two masks, two meanings; traps 2, 3, 10 and 12."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.data.layouts import Bucket, EncoderDecoderLayout, Row
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import mse
from kd_jax.models.base import Head
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import Term, total_loss
from kd_jax.parallel import devices
from kd_jax.parallel.base import Devices
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.training.step import count_tokens, eval_step, init_state, loss_fn, train_step
from kd_jax.types import Batch
from tests.batches import random_examples

B, S, T, V = 16, 5, 6, 19
MODEL = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_ff=16, dropout=0.2).build(V)
SIGNAL = TopK(k=4)
TERMS = {
    "ce": Term(cross_entropy, weight=0.3, options={"label_smoothing": 0.1}),
    "kd": Term(forward_kl, weight=0.7, signal=SIGNAL),
}
FEATURES = {
    "ce": Term(cross_entropy, weight=0.3),
    "kd": Term(forward_kl, weight=0.2, signal=Online()),
    "encoder": Term(mse, weight=0.5, signal=HiddenStates(layers=((0, 0),), stack="encoder")),
    "decoder": Term(mse, weight=0.7, signal=HiddenStates(layers=((0, 0),))),
    "relations": Term(forward_kl, signal=AttentionRelations(layers=((0, 0),), heads=2)),
}
TX = optax.sgd(1.0)
TEACHER_PARAMS = MODEL.init(jax.random.key(9))
each_objective = pytest.mark.parametrize("terms", [TERMS, FEATURES], ids=["cached", "beside the teacher"])


def make_batch(seed: int = 0) -> Batch:
    """Uneven rows, whose first targets do not count in two of three; one counts nothing; a random teacher."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, (S + 1, T + 1), (B, 2)).tolist()
    rows = []
    for i, example in enumerate(random_examples(seed, lengths, V)):
        counts = (np.arange(len(example.completion)) >= i % 3) & (i != 3)
        record = SIGNAL.reduce(jnp.asarray(rng.normal(size=(counts.sum(), V)), jnp.float32))
        rows.append(Row(i, example._replace(counts=counts), 1.0, {SIGNAL.name: record}))
    return EncoderDecoderLayout().batch(rows, B, Bucket(S, T), {SIGNAL.name: SIGNAL.schema(V)})


def after_one_step(spread: Devices, batch: Batch, microbatches: int = 1, terms=TERMS):
    """(parameters, mean of every Sum) after one step of plain gradient descent."""
    params = MODEL.init(jax.random.key(0))
    parts = {"model": MODEL, "teacher": MODEL, "terms": terms, "tx": TX, "microbatches": microbatches}
    step = spread.compile_sums(functools.partial(train_step, **parts))
    state, said = spread.put((init_state(jax.random.key(1), params, TX), TEACHER_PARAMS))
    state, sums = step(state, spread.cut(batch), said)
    host = jax.device_get(spread.first((state.params, sums)))
    return host[0], {name: one.mean() for name, one in host[1].items()}


@each_objective
def test_one_and_eight_devices_one_and_four_microbatches_agree(terms):
    """Encoder's, decoder's and targets' tokens are each counted over all portions (trap 3)."""
    batch = make_batch()
    want = after_one_step(devices("jit"), batch, terms=terms)
    assert devices("pmap").count == 8
    for backend, microbatches in (("pmap", 1), ("jit", 4), ("pmap", 2)):
        got = after_one_step(devices(backend), batch, microbatches, terms)
        chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def where(mask_BT, x, junk):
    """x where the mask is true, junk elsewhere, whatever axes follow."""
    return np.where(mask_BT.reshape(*mask_BT.shape, *[1] * (x.ndim - 2)), x, junk).astype(x.dtype)


def junk_payload(batch, mask_BT):
    """Other ids and logits where the mask is false; the ids are the vocabulary's, as all that is ever stored."""
    said = batch.payload[SIGNAL.name]
    junk = {name: V - 1 - x if name == "ids" else x[::-1] + 1 for name, x in said.items()}
    return {SIGNAL.name: {name: where(mask_BT, x, junk[name]) for name, x in said.items()}}


@each_objective
def test_junk_in_padding_changes_no_bit(terms):
    """Segment 0 does not exist: neither its ids, targets and payload nor rows that only fill up (trap 12)."""
    batch = make_batch()
    inputs, there_BT = batch.inputs, batch.inputs.decoder.segment_BT > 0
    changed = batch._replace(
        inputs=inputs._replace(
            decoder=inputs.decoder._replace(ids_BT=where(there_BT, inputs.decoder.ids_BT, 7)),
            encoder=inputs.encoder._replace(ids_BT=where(inputs.encoder.segment_BT > 0, inputs.encoder.ids_BT, 11)),
        ),
        targets_BT=where(there_BT, batch.targets_BT, 5),
        payload=junk_payload(batch, there_BT),
    )
    want, got = (after_one_step(devices("jit"), x, terms=terms) for x in (batch, changed))
    chex.assert_trees_all_equal(got, want)


def test_junk_in_targets_that_do_not_count_changes_no_bit():
    """What they are and what the teacher says of them; that they were read as the next input is another matter."""
    batch = make_batch()
    junk = {"targets_BT": where(batch.mask_BT, batch.targets_BT, 7), "payload": junk_payload(batch, batch.mask_BT)}
    changed = batch._replace(**junk)
    chex.assert_trees_all_equal(after_one_step(devices("jit"), changed), after_one_step(devices("jit"), batch))


def test_what_does_not_count_is_still_attended_to():
    """A decoder token before the first target that counts moves the loss, one in padding does not."""
    batch = make_batch()
    row = int(np.flatnonzero((np.arange(B) % 3 == 2) & (batch.mask_BT.sum(1) > 0))[0])
    read = batch.inputs.decoder.ids_BT.copy()
    read[row, 1] = 5 if read[row, 1] != 5 else 6
    assert not batch.mask_BT[row, :2].any() and batch.inputs.decoder.segment_BT[row, 1] == 1
    changed = batch._replace(inputs=batch.inputs._replace(decoder=batch.inputs.decoder._replace(ids_BT=read)))
    losses = [share_of(x, TERMS, MODEL.init(jax.random.key(0)))[0] for x in (batch, changed)]
    assert abs(losses[0] - losses[1]) > 1e-5


def share_of(batch, terms, params):
    """loss_fn without dropout, the whole batch being all there is; compiled, which is quicker than step by step."""
    share = functools.partial(loss_fn, model=MODEL, teacher=MODEL, terms=terms)
    return jax.jit(lambda params: share((params, {}), batch, count_tokens(batch), None, TEACHER_PARAMS))(params)


def test_each_stack_is_a_mean_over_its_own_tokens():
    """Closed form with unequal counts: encoder's, decoder's and targets' tokens each divide their own terms."""
    batch, params = make_batch(), MODEL.init(jax.random.key(0))
    counts = {name: int(count) for name, count in count_tokens(batch).items()}
    stacks = {"encoder": batch.inputs.encoder, "decoder": batch.inputs.decoder}
    assert counts == {name: int((tokens.segment_BT > 0).sum()) for name, tokens in stacks.items()} | {
        "target": int(batch.mask_BT.sum())
    }
    assert len(set(counts.values())) == 3
    terms = {name: FEATURES[name] for name in ("ce", "encoder", "decoder")}
    total, sums = share_of(batch, terms, params)
    hidden, ours = MODEL.taps(params, batch.inputs)
    _, theirs = MODEL.taps(TEACHER_PARAMS, batch.inputs)
    logp = np.asarray(jax.nn.log_softmax(MODEL.head(params).logits(hidden)), np.float64)
    each_BT = -np.take_along_axis(logp, batch.targets_BT[..., None], -1)[..., 0]
    means = {"ce": each_BT[batch.mask_BT].mean()}
    for stack, tokens in stacks.items():
        x, y = (np.asarray(taps[f"{stack}_0.hidden"], np.float64) for taps in (ours, theirs))
        means[stack] = ((x - y) ** 2).mean(-1)[tokens.segment_BT > 0].mean()
    want = sum(terms[name].weight * mean for name, mean in means.items())
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose([float(sums[name].mean()) for name in means], list(means.values()), rtol=1e-5)
    np.testing.assert_allclose(float(sums["loss"].mean()), want, rtol=1e-5)


def test_rows_that_only_fill_up_change_nothing():
    batch = make_batch()
    more = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:3])]), batch)
    index_B = np.concatenate([batch.inputs.index_B, np.full(3, -1, np.int32)])
    more = more._replace(inputs=more.inputs._replace(index_B=index_B))
    gradient = jax.grad(lambda params, batch: share_of(batch, FEATURES, params)[0])
    chex.assert_trees_all_close(*(gradient(MODEL.init(jax.random.key(0)), x) for x in (batch, more)), atol=1e-6)


def test_evaluation_reports_the_mean_over_targets_that_count():
    batch, params = make_batch(), MODEL.init(jax.random.key(0))
    sums = eval_step(params, batch, model=MODEL, terms={"ce": Term(cross_entropy)})
    logp = jax.nn.log_softmax(MODEL.head(params).logits(MODEL.apply(params, batch.inputs)))
    each_BT = -np.take_along_axis(np.asarray(logp), batch.targets_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(float(sums["ce"].mean()), each_BT[batch.mask_BT].mean(), rtol=1e-5)
    assert int(sums["ce"].weight) == batch.mask_BT.sum()


@pytest.mark.parametrize("signal", [SIGNAL, Online()], ids=["topk", "online"])
def test_1e4_in_masked_logits_changes_no_bit_and_the_end_is_learnt(signal):
    """Trap 2: with an identity for a head hidden states are logits; EOS has pad's id, the mask tells them apart."""
    rng, last = np.random.default_rng(0), 4  # the end stands at position 4, pads of the same id after it
    mask = np.arange(9) <= last
    terms = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=signal)}
    student, teacher = rng.normal(size=(2, 9, V)).astype(np.float32)
    targets = jnp.asarray(np.where(np.arange(9) < last, rng.integers(1, V, 9), 0), jnp.int32)

    @jax.jit
    def value_and_grad(student, teacher):
        rows = {"targets": targets, "mask": jnp.asarray(mask), "weight": jnp.ones(9)}
        fixed = {"step": jnp.int32(0), "teacher_head": Head(jnp.eye(V))}
        cached = {} if signal == Online() else {signal.name: signal.reduce(teacher)}
        rows |= {"payload": cached} | ({} if cached else {"teacher_hidden": teacher})
        objective = functools.partial(total_loss, terms)
        return jax.value_and_grad(lambda x: fused_head(objective, x, Head(jnp.eye(V)), rows, fixed, 4)[0])(student)

    junk = np.where(mask[:, None], 0.0, 1e4).astype(np.float32) * rng.integers(-1, 2, (9, V))
    want = value_and_grad(student, teacher)
    chex.assert_trees_all_equal(value_and_grad(student + junk, teacher - junk), want)
    assert np.abs(want[1][last]).max() > 1e-3 and not np.any(want[1][last + 1 :])


def test_all_masked_batch_gives_zero_and_finite_gradients():
    batch = make_batch()
    batch = batch._replace(mask_BT=np.zeros_like(batch.mask_BT))
    params, means = after_one_step(devices("jit"), batch)
    chex.assert_trees_all_equal(params, jax.device_get(MODEL.init(jax.random.key(0))))
    assert means["loss"] == 0


def test_dropout_follows_the_example_not_its_place():
    batch = make_batch()
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    chex.assert_trees_all_close(
        after_one_step(devices("jit"), shuffled), after_one_step(devices("jit"), batch), atol=1e-6, rtol=1e-5
    )


def test_student_equal_to_teacher_has_no_kd_loss():
    batch, params = make_batch(), MODEL.init(jax.random.key(0))
    logits = MODEL.head(params).logits(MODEL.apply(params, batch.inputs))
    signal = TopK(k=V)
    payload = {k: v.reshape(B, T, *v.shape[1:]) for k, v in signal.reduce(logits.reshape(-1, V)).items()}
    batch = batch._replace(payload={signal.name: payload})
    terms = {"kd": Term(forward_kl, signal=signal)}
    loss, gradient = jax.value_and_grad(lambda p: share_of(batch, terms, p)[0])(params)
    assert abs(loss) < 1e-6
    assert optax.tree.norm(gradient) < 1e-2  # the stored logits are float16


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_reported_terms_add_up_to_the_loss(microbatches):
    _, means = after_one_step(devices("jit"), make_batch(), microbatches)
    want = sum(term.weight * means[name] for name, term in TERMS.items())
    np.testing.assert_allclose(means["loss"], want, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform):
    state = init_state(jax.random.key(1), MODEL.init(jax.random.key(0)), TX)
    step = jax.jit(functools.partial(train_step, model=MODEL, terms=TERMS, tx=TX))
    assert jax.export.export(step, platforms=[platform])(state, make_batch()).platforms == (platform,)
