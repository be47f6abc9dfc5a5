"""Time of a step at the devices' peak: forward and backward passes of the student, a forward pass of the teacher."""

import jax
import pytest

from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.flops import count_workload, flops_per_unit
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.chips import CHIPS
from kd_jax.training import peak
from tests.helpers.batches import random_examples, to_batch

CHIP = CHIPS["tpu-v5e"]


@pytest.fixture(scope="module")
def network():
    model = DecoderOnly(layers=1, d_model=8, heads=2, d_ff=16).build(vocab_size=9)
    return model, jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("with_teacher, passes", [(False, 3), (True, 4)])
def test_seconds_are_flops_over_the_peak_rate(monkeypatch, network, with_teacher, passes):
    batch = to_batch(random_examples(0, [(3, 4)], 9))
    monkeypatch.setattr(peak, "local_chip", lambda: CHIP)
    devices = make_devices("jit")
    seconds = peak.seconds_at_peak(devices, network, network if with_teacher else None)(batch)
    flops = passes * flops_per_unit(*network).dot(count_workload(batch))
    assert flops > 0
    assert seconds == pytest.approx(flops / (CHIP.flops * devices.local))


def test_seconds_are_zero_on_unknown_devices(network):
    batch = to_batch(random_examples(0, [(3, 4)], 9))
    assert peak.seconds_at_peak(make_devices("jit"), network)(batch) == 0
