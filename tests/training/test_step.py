"""The training step: token counts, added gradients, padding and loss masks; traps 2, 3, 10 and 12."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.batches.layouts import Bucket
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Architecture, Head
from kd_jax.objective.fused_head import fused_head
from kd_jax.objective.terms import StepInputs, Term, Terms, TokenInputs, total_loss
from kd_jax.runtime.backends import make_devices
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import count_tokens, eval_step, init_state, loss_fn, train_step
from kd_jax.types import Batch
from tests.helpers.batches import rows_of, segments_with_signal
from tests.helpers.families import FAMILIES, SIGNAL, V, each_family, every_term, network

B, S, T = 16, 5, 6
TX = optax.sgd(1.0)


def make_batch(architecture: Architecture, per_row: int = 1) -> Batch:
    """Return rows of `per_row` examples of uneven length, with a random teacher's signal."""
    segments = segments_with_signal(0, (S, T), per_row * B, SIGNAL, V)
    bucket, schemas = Bucket(per_row * S, per_row * T), {SIGNAL.name: SIGNAL.schema(V)}
    return architecture.layout(START).batch(rows_of(segments, [per_row] * B), B, bucket, schemas)


@functools.cache
def compiled_step(architecture: Architecture, backend: str, microbatches: int):
    model = network(architecture)[0]
    parts = {"model": model, "teacher": model, "terms": every_term(architecture), "tx": TX}
    return make_devices(backend).compile_sums(functools.partial(train_step, **parts, microbatches=microbatches))


def after_one_step(architecture: Architecture, batch: Batch, backend: str = "jit", microbatches: int = 1):
    """Return (parameters, mean of each Sum) after one step of gradient descent."""
    (_, params, teacher_params), devices = network(architecture), make_devices(backend)
    state, teacher_params = devices.replicate((init_state(jax.random.key(1), params, TX), teacher_params))
    state, sums = compiled_step(architecture, backend, microbatches)(state, devices.shard(batch), teacher_params)
    host = jax.device_get(devices.unreplicate((state.params, sums)))
    return host[0], {name: one.mean() for name, one in host[1].items()}


@pytest.mark.parametrize("family, per_row", [("encoder_decoder", 1), ("decoder_only", 2)])
def test_step_is_independent_of_devices_and_microbatches(family, per_row):
    """Tokens of encoder, decoder and targets are counted over all portions (trap 3)."""
    architecture = FAMILIES[family]
    batch = make_batch(architecture, per_row)
    want = after_one_step(architecture, batch)
    assert make_devices("pmap").count == 8
    for backend, microbatches in (("jit", 4), ("pmap", 2)):
        got = after_one_step(architecture, batch, backend, microbatches)
        chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def where(mask_BT, x, junk):
    """Return x where the mask is true, junk elsewhere."""
    return np.where(mask_BT.reshape(*mask_BT.shape, *[1] * (x.ndim - 2)), x, junk).astype(x.dtype)


def junk_payload(batch, mask_BT):
    """Return the payload with other valid ids and logits where the mask is false."""
    payload = batch.payload[SIGNAL.name]
    junk = {name: V - 1 - x if name == "ids" else x[::-1] + 1 for name, x in payload.items()}
    return {SIGNAL.name: {name: where(mask_BT, x, junk[name]) for name, x in payload.items()}}


@each_family
def test_padding_does_not_affect_the_step(architecture):
    """Ids, targets and payload of padding, also in rows of padding, change no bit (trap 12)."""
    batch = make_batch(architecture)
    inputs, real_BT = batch.inputs, batch.inputs.decoder.segment_BT > 0
    junk = lambda tokens, ids: tokens._replace(ids_BT=where(tokens.segment_BT > 0, tokens.ids_BT, ids))  # noqa: E731
    changed = batch._replace(
        inputs=inputs._replace(decoder=junk(inputs.decoder, 7), encoder=inputs.encoder and junk(inputs.encoder, 11)),
        targets_BT=where(real_BT, batch.targets_BT, 5),
        payload=junk_payload(batch, real_BT),
    )
    want, got = (after_one_step(architecture, x) for x in (batch, changed))
    chex.assert_trees_all_equal(got, want)


@each_family
def test_masked_targets_do_not_affect_the_step(architecture):
    """Neither their ids nor their payload; as inputs of the decoder they stay the same."""
    batch = make_batch(architecture)
    junk = {"targets_BT": where(batch.mask_BT, batch.targets_BT, 7), "payload": junk_payload(batch, batch.mask_BT)}
    want, got = (after_one_step(architecture, x) for x in (batch, batch._replace(**junk)))
    chex.assert_trees_all_equal(got, want)


@each_family
def test_masked_targets_are_attended_to(architecture):
    """A decoder token before the first target that counts changes the loss."""
    batch = make_batch(architecture)
    row = int(np.flatnonzero((np.arange(B) % 3 == 2) & (batch.mask_BT.sum(1) > 0))[0])
    ids_BT = batch.inputs.decoder.ids_BT.copy()
    ids_BT[row, 1] = 5 if ids_BT[row, 1] != 5 else 6
    assert not batch.mask_BT[row, :2].any() and batch.inputs.decoder.segment_BT[row, 1] > 0
    changed = batch._replace(inputs=batch.inputs._replace(decoder=batch.inputs.decoder._replace(ids_BT=ids_BT)))
    losses = [after_one_step(architecture, x)[1]["loss"] for x in (batch, changed)]
    assert abs(losses[0] - losses[1]) > 1e-5


def loss_of(architecture: Architecture, batch: Batch, terms: Terms):
    """Return (loss, gradient, Sums) of a batch without dropout."""
    model, params, teacher_params = network(architecture)
    loss_of_batch = functools.partial(loss_fn, model=model, teacher=model, terms=terms, teacher_params=teacher_params)
    loss = lambda params, batch: loss_of_batch((params, {}), batch, count_tokens(batch), None)  # noqa: E731
    (total, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    return total, gradient, sums


def test_each_term_is_a_mean_over_its_own_tokens():
    """Each term equals its closed form with its own count: of encoder tokens, decoder tokens or targets."""
    architecture = FAMILIES["encoder_decoder"]
    batch, (model, params, teacher_params) = make_batch(architecture), network(architecture)
    batch = batch._replace(weight_BT=np.ones_like(batch.weight_BT))
    counts = {name: int(count) for name, count in count_tokens(batch)._asdict().items() if count is not None}
    stacks = {"encoder": batch.inputs.encoder, "decoder": batch.inputs.decoder}
    assert counts == {name: int((tokens.segment_BT > 0).sum()) for name, tokens in stacks.items()} | {
        "target": int(batch.mask_BT.sum())
    }
    assert len(set(counts.values())) == 3
    terms = every_term(architecture)
    total, _, sums = loss_of(architecture, batch, terms)
    taps = jax.jit(model.taps)
    (hidden_BTD, student_taps), (_, teacher_taps) = taps(params, batch.inputs), taps(teacher_params, batch.inputs)
    logp_BTV = np.asarray(jax.nn.log_softmax(model.head(params).logits(hidden_BTD)), np.float64)
    nll_BT = -np.take_along_axis(logp_BTV, batch.targets_BT[..., None], -1)[..., 0]
    means = {"ce": nll_BT[batch.mask_BT].mean()}
    for stack, tokens in stacks.items():
        x, y = (np.asarray(taps[f"{stack}_0.hidden"], np.float64) for taps in (student_taps, teacher_taps))
        means[stack] = ((x - y) ** 2).mean(-1)[tokens.segment_BT > 0].mean()
    np.testing.assert_allclose([float(sums[name].mean()) for name in means], list(means.values()), rtol=1e-5)
    want = sum(term.weight * float(sums[name].mean()) for name, term in terms.items())
    np.testing.assert_allclose([total, float(sums["loss"].mean())], want, rtol=1e-5)


def test_eval_step_is_the_mean_over_counted_targets():
    architecture = FAMILIES["decoder_only"]
    batch, (model, params, _) = make_batch(architecture), network(architecture)
    batch = batch._replace(weight_BT=np.ones_like(batch.weight_BT))
    sums = jax.jit(functools.partial(eval_step, model=model, terms={"ce": Term(cross_entropy)}))(params, batch)
    logp_BTV = jax.nn.log_softmax(model.head(params).logits(jax.jit(model.apply)(params, batch.inputs)))
    nll_BT = -np.take_along_axis(np.asarray(logp_BTV), batch.targets_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(float(sums["ce"].mean()), nll_BT[batch.mask_BT].mean(), rtol=1e-5)
    assert int(sums["ce"].weight) == batch.mask_BT.sum()


@pytest.mark.parametrize("signal", [SIGNAL, Online()], ids=["topk", "online"])
def test_masked_logits_of_1e4_change_no_bit_and_end_token_is_learned(signal):
    """Trap 2: EOS and padding have one id, and the mask tells them apart. The head is an identity."""
    rng, last = np.random.default_rng(0), 4  # EOS at position 4, padding of the same id after it
    mask = np.arange(9) <= last
    terms = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=signal)}
    student, teacher = rng.normal(size=(2, 9, V)).astype(np.float32)
    targets = jnp.asarray(np.where(np.arange(9) < last, rng.integers(1, V, 9), 0), jnp.int32)

    @jax.jit
    def value_and_grad(student, teacher):
        payload = {} if signal == Online() else {signal.name: signal.reduce(teacher)}
        tokens = TokenInputs(targets, jnp.asarray(mask), jnp.ones(9), payload, None if payload else teacher)
        shared = StepInputs(step=jnp.int32(0), teacher_head=Head(jnp.eye(V)))
        objective = functools.partial(total_loss, terms)
        return jax.value_and_grad(lambda x: fused_head(objective, x, Head(jnp.eye(V)), tokens, shared, 4)[0])(student)

    junk = np.where(mask[:, None], 0.0, 1e4).astype(np.float32) * rng.integers(-1, 2, (9, V))
    want = value_and_grad(student, teacher)
    chex.assert_trees_all_equal(value_and_grad(student + junk, teacher - junk), want)
    assert np.abs(want[1][last]).max() > 1e-3 and not np.any(want[1][last + 1 :])


@each_family
def test_batch_without_mask_and_weight_changes_nothing(architecture):
    """Terms on layers ignore the mask, so the weight excludes them."""
    batch = make_batch(architecture)
    zeros = {name: np.zeros_like(batch._asdict()[name]) for name in ("mask_BT", "weight_BT")}
    params, means = after_one_step(architecture, batch._replace(**zeros))
    chex.assert_trees_all_equal(params, jax.device_get(network(architecture)[1]))
    assert means["loss"] == 0


@each_family
def test_dropout_belongs_to_the_example(architecture):
    batch = make_batch(architecture)
    order = np.random.default_rng(1).permutation(B)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    got, want = (after_one_step(architecture, x) for x in (shuffled, batch))
    chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def test_kd_loss_of_the_teacher_itself_is_zero():
    architecture = FAMILIES["encoder_decoder"]
    batch, (model, params, _) = make_batch(architecture), network(architecture)
    logits_BTV = model.head(params).logits(jax.jit(model.apply)(params, batch.inputs))
    signal = TopK(k=V)
    payload = {k: v.reshape(B, T, *v.shape[1:]) for k, v in signal.reduce(logits_BTV.reshape(-1, V)).items()}
    batch = batch._replace(payload={signal.name: payload})
    loss, gradient, _ = loss_of(architecture, batch, {"kd": Term(forward_kl, signal=signal)})
    assert abs(loss) < 1e-6
    assert optax.tree.norm(gradient) < 1e-2  # the stored logits are float16


@pytest.mark.parametrize("microbatches", [1, 4])
def test_terms_add_up_to_the_loss(microbatches):
    architecture = FAMILIES["encoder_decoder"]
    batch = make_batch(architecture)
    batch = batch._replace(weight_BT=np.ones_like(batch.weight_BT))
    _, means = after_one_step(architecture, batch, microbatches=microbatches)
    want = sum(term.weight * means[name] for name, term in every_term(architecture).items())
    np.testing.assert_allclose(means["loss"], want, rtol=1e-6)


@each_family
def test_step_lowers_for_every_platform(architecture):
    model, params, teacher_params = network(architecture)
    parts = {"model": model, "teacher": model, "terms": every_term(architecture), "tx": TX}
    lowered = jax.export.export(jax.jit(functools.partial(train_step, **parts)), platforms=["cpu", "cuda", "tpu"])
    state = init_state(jax.random.key(1), params, TX)
    assert lowered(state, make_batch(architecture), teacher_params).platforms == ("cpu", "cuda", "tpu")
