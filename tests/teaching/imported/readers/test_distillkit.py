"""DistillKit's files: bits, polynomials, missing ranks, settings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers import distillkit
from kd_jax.teaching.imported.readers.base import NO_TOKEN, check_record
from tests.teaching.imported.readers import writers
from tests.teaching.imported.readers.files import LOGP, TOKENS, V


@given(st.integers(1, 17), st.data())
def test_decode_indices_inverts_packing(bits, data):
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=9))
    compression = distillkit.Compression(d=2**bits, k=len(numbers), exact_k=len(numbers), residual_bins=())
    packed = np.asarray([writers.packed_bits(numbers, bits)], np.uint8)
    assert distillkit.decode_indices("f", packed, compression).tolist() == [numbers]


def test_one_bit_is_a_sign_and_values_without_delta_are_not_summed():
    bins = (distillkit.Bin("float16", 1, 3),)
    compression = distillkit.Compression(4, 4, 1, bins, delta_encoding=False)
    data = list(np.float32(-0.5).tobytes() + np.float16(0.25).tobytes()) + [0b10100000]
    assert distillkit.decode_values("f", np.asarray([data], np.uint8), compression).tolist() == [
        [-0.5, 0.25, -0.25, 0.25]
    ]
    with pytest.raises(KdError, match="got 1 more"):
        distillkit.decode_values("f", np.asarray([[*data, 0]], np.uint8), compression)


def test_missing_ranks_are_dropped(tmp_path):
    """Missing ranks are -inf, whose differences are nan, and have any id."""
    path = writers.distillkit(tmp_path / "file", [(TOKENS, LOGP)])
    path.with_name("compression_config.yaml").write_text("{d: 60, k: 4, exact_k: 4, residual_bins: []}")
    values = np.asarray([-0.5, -1.0, -np.inf, -np.inf], np.float32)
    with np.errstate(invalid="ignore"):
        data = list(np.diff(values, prepend=np.float32(0)).tobytes())
    compression = distillkit.read_compression(path.with_name("compression_config.yaml"))
    row = {"input_ids": [1, 2], "compressed_logprobs": [data]}
    row["bytepacked_indices"] = [writers.packed_bits([5, 9, 63, 5], 6)]
    record = distillkit._record("f", row, compression)
    check_record(record, V, True, 1e-3)
    assert record.ids_NK.tolist() == [[5, 9, NO_TOKEN, NO_TOKEN]]
    np.testing.assert_array_equal(record.logp_NK, [[-0.5, -1.0, -np.inf, -np.inf]])


def test_invalid_settings_are_rejected(tmp_path):
    path = tmp_path / "compression_config.yaml"
    for text in (
        "[]",
        "d: 60",
        "{d: 60, k: 4, exact_k: 5, residual_bins: []}",
        "!!python/object:os.system {}",
        "a: [1",
    ):
        path.write_text(text)
        with pytest.raises(KdError, match="compression_config.yaml: "):
            distillkit.read_compression(path)
    with pytest.raises(KdError, match="expected the file that DistillKit writes"):
        distillkit.read_compression(tmp_path / "other.yaml")
