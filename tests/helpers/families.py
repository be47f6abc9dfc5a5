"""One small architecture of each family over one vocabulary, and an objective with every kind of term."""

import functools

import jax
import pytest

from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.losses.features import mse
from kd_jax.models.base import Architecture
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.objective.terms import Term, Terms
from kd_jax.signals.features import AttentionRelations, HiddenStates
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK

V = 19
FAMILIES = {
    "encoder_decoder": EncoderDecoder(1, 1, d_model=16, heads=2, d_ff=16, dropout=0.2),
    "decoder_only": DecoderOnly(1, d_model=16, heads=2, kv_heads=1, d_ff=16, dropout=0.2),
}
SIGNAL = TopK(k=4)
each_family = pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)


@functools.cache
def network(architecture: Architecture):
    """Return (model, its parameters, a teacher's parameters)."""
    model = architecture.build(V)
    init = jax.jit(model.init)
    return model, init(jax.random.key(0)), init(jax.random.key(9))


def every_term(architecture: Architecture) -> Terms:
    """Return terms on the data, a cache, the teacher in the step, and the layers of every stack."""
    terms = {
        "ce": Term(cross_entropy, weight=0.3),
        "kd": Term(forward_kl, weight=0.7, signal=SIGNAL),
        "online": Term(forward_kl, weight=0.2, signal=Online()),
    }
    for stack in architecture.stacks():
        terms[stack] = Term(mse, weight=0.5, signal=HiddenStates(layers=((0, 0),), stack=stack))
        relations = AttentionRelations(layers=((0, 0),), stack=stack, heads=2, kinds=("q",))
        terms[f"{stack}_relations"] = Term(forward_kl, weight=0.4, signal=relations)
    return terms
