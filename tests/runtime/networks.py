"""A small network of each family whose vocabulary every mesh divides, and a batch that ends with rows of padding."""

import functools

import jax
import optax

from kd_jax.batches.layouts import Bucket
from kd_jax.models.base import Architecture
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Terms
from kd_jax.runtime.devices import Devices
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.step import init_state, state_axes, train_step
from kd_jax.types import Batch
from tests.helpers.batches import rows_of, segments_with_signal
from tests.helpers.families import SIGNAL

B, S, T, V = 16, 5, 6, 48
SIZES = {"d_model": 16, "heads": 2, "d_ff": 32, "dropout": 0.2}
FAMILIES = {
    "encoder_decoder": EncoderDecoder(1, 1, **SIZES, biases="all"),
    "decoder_only": DecoderOnly(1, **SIZES, kv_heads=1, tied=False),
}


def make_batch(architecture: Architecture) -> Batch:
    """Return 13 uneven examples with a random teacher's signal, and 3 rows of padding."""
    segments = segments_with_signal(0, (S, T), B - 3, SIGNAL, V)
    schemas = {SIGNAL.name: SIGNAL.schema(V)}
    return architecture.layout(START).batch(rows_of(segments, [1] * (B - 3)), B, Bucket(S, T), schemas)


@functools.cache
def network(architecture: Architecture):
    """Return (model, its parameters, a teacher's), on the host: a step donates arrays that lie on a device already."""
    model = architecture.build(V)
    init = jax.jit(model.init)
    return model, *jax.device_get((init(jax.random.key(0)), init(jax.random.key(9))))


def step_on(
    devices: Devices, architecture: Architecture, terms: Terms, tx: optax.GradientTransformation, microbatches: int = 1
):
    """Return (compiled training step, its first state, the teacher's parameters), on the devices."""
    model, params, teacher_params = network(architecture)
    parts = {"model": model, "teacher": model, "terms": terms, "tx": tx, "microbatches": microbatches}
    state = init_state(jax.random.key(1), model.stack(params), tx)
    state = devices.replicate(state, state_axes(state, tx, model.axes(state.params)))
    step = devices.compile_sums(functools.partial(train_step, **parts), donate=True)
    return step, state, devices.replicate(teacher_params, model.axes(teacher_params))
