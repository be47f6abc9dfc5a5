"""Candidates and their compiled programs."""

import types

import jax
import numpy as np

from kd_jax.evaluation.candidates import Candidate, Programs
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Decoding

SMALL = DecoderOnly(layers=1, d_model=8, heads=2, d_ff=16)
TOKENIZER = types.SimpleNamespace(vocab_size=10, ends=(2,), suppress_tokens=(), suppress_first=(), force_end=False)


def test_models_of_one_architecture_share_programs():
    programs, devices = Programs(Decoding(), SMALL.build(10), TOKENIZER), make_devices("jit")
    equal = DecoderOnly(layers=1, d_model=8, heads=2, d_ff=16)
    assert programs.compare(SMALL, devices) is programs.compare(equal, devices)
    assert programs.write(SMALL, "greedy", devices) is not programs.write(SMALL, "beam", devices)


def test_int8_candidate_keeps_the_trained_models_name():
    params = SMALL.build(10).init(jax.random.key(0))
    candidate = Candidate("kd", "kd", SMALL, params).with_int8_weights("kd_int8")
    assert (candidate.name, candidate.trained_name) == ("kd_int8", "kd")
    programs = Programs(Decoding(), SMALL.build(10), TOKENIZER)
    on_devices = programs.replicate_params(candidate, make_devices("jit"))
    np.testing.assert_array_equal(*(one["embedding"].qvalue for one in (candidate.params, on_devices)))
