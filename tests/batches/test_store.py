"""The store: round trips, resumed writes, damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_jax.batches import store
from kd_jax.batches.store import Store, pack, shard_path, unpack, write
from kd_jax.errors import KdError
from kd_jax.types import Field

SCHEMA = {"ids": Field((3,), "uint16"), "rest": Field((), "float32"), "digest": Field((), "uint8")}


def record(i):
    tokens = i % 5
    ids = np.arange(3 * tokens).reshape(tokens, 3) + i
    return {"ids": ids, "rest": np.full(tokens, i / 2, np.float32), "digest": np.full(8, i % 256, np.uint8)}


def make(start, stop):
    return (record(i) for i in range(start, stop))


@given(st.integers(0, 6).flatmap(lambda n: hnp.arrays(np.uint16, (n, 3))), hnp.arrays(np.float32, 4))
@settings(max_examples=30, deadline=None)
def test_unpack_inverts_pack(ids, rest):
    packed = {"ids": ids, "rest": rest, "digest": np.arange(8, dtype=np.uint8)}
    for name, value in unpack(SCHEMA, pack(SCHEMA, packed)).items():
        np.testing.assert_array_equal(value, packed[name])


def test_pack_keeps_large_ids_and_rejects_overflow():
    schema = {"ids": Field((), "uint32")}
    ids = np.asarray([0, 65_536, 262_143])
    np.testing.assert_array_equal(unpack(schema, pack(schema, {"ids": ids}))["ids"], ids)
    with pytest.raises(KdError, match="expected values that fit into uint16, got 262143"):
        pack({"ids": Field((), "uint16")}, {"ids": ids})


def test_records_are_read_in_any_order(tmp_path):
    write(tmp_path, "s", SCHEMA, 10, make, records_per_shard=4)
    opened = Store(tmp_path, "s")
    assert len(opened) == 10
    for i in (9, 0, 4, 3):
        for name, value in opened[i].items():
            np.testing.assert_array_equal(value, record(i)[name])


def test_killed_write_resumes_with_missing_shard(tmp_path):
    def killed(start, stop):
        if start >= 4:
            raise KeyboardInterrupt
        return make(start, stop)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "s", SCHEMA, 10, killed, records_per_shard=4)
    with pytest.raises(KdError, match="expected the index of a finished store"):
        Store(tmp_path / "a", "s")
    starts = []

    def counted(start, stop):
        starts.append(start)
        return make(start, stop)

    digest = write(tmp_path / "a", "s", SCHEMA, 10, counted, records_per_shard=4)
    assert starts == [4, 8]
    assert digest == write(tmp_path / "b", "s", SCHEMA, 10, make, records_per_shard=4)


@pytest.mark.parametrize("in_memory", [0, 2**29])
def test_flipped_byte_is_detected_and_named(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(store, "IN_MEMORY_BYTES", in_memory)
    write(tmp_path, "s", SCHEMA, 10, make, records_per_shard=4)
    path = shard_path(tmp_path, "s", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    opened = Store(tmp_path, "s")
    opened[0]
    with pytest.raises(KdError, match="s-00001.arrayrecord"):
        opened[5]


def test_truncated_or_missing_shard_is_detected(tmp_path):
    write(tmp_path, "s", SCHEMA, 10, make, records_per_shard=4)
    path = shard_path(tmp_path, "s", 2)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(KdError, match="s-00002"):
        Store(tmp_path, "s")[9]
    path.unlink()
    with pytest.raises(KdError, match="missing"):
        Store(tmp_path, "s")


@pytest.mark.parametrize("counts", [[4, 4, 2], [3, 0, 5], [7], []])
def test_shards_of_different_sizes(tmp_path, counts):
    start = 0
    for shard, count in enumerate(counts):
        store.write_shard(tmp_path, "s", shard, SCHEMA, make(start, start + count))
        start += count
    digest = store.write_index(tmp_path, "s", SCHEMA, counts, records_per_shard=4)
    opened = Store(tmp_path, "s")
    assert len(opened) == sum(counts) and opened.digest == digest
    for i in range(sum(counts)):
        np.testing.assert_array_equal(opened[i]["ids"], record(i)["ids"])
    if counts == [4, 4, 2]:  # the same bytes as from the other two functions
        assert digest == write(tmp_path / "a", "s", SCHEMA, 10, make, records_per_shard=4)
        assert digest == store.write_stream(tmp_path / "b", "s", SCHEMA, make(0, 10), records_per_shard=4)
