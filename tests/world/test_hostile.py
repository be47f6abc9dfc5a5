"""Files and texts of a stranger: nothing larger than the file is allocated, no control character is shown."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.artifacts import files, manifest
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import store
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError
from kd_jax.phases.workdirs import read_experiment, write_experiment
from kd_jax.printable import printable
from kd_jax.reporting import page
from kd_jax.runtime import progress
from kd_jax.teaching.imported.readers import vllm
from kd_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from kd_jax.types import Field

ESCAPES = {"\x1b": r"\x1b", "\u202e": r"\u202e", "\x9b": r"\x9b", "\x00": r"\x00", "\x7f": r"\x7f", "\u2066": r"\u2066"}


@pytest.fixture
def peak():
    """Return a function that gives the peak of Python's and NumPy's memory in the test so far, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("control, escape", ESCAPES.items())
def test_control_characters_are_shown_as_escapes(control, escape, capsys):
    text = f"cats{control}dogs"
    document = page.Document(
        title=text,
        lead=text,
        warnings=[text],
        sections={text: [page.Table([["model", text], [text, "1"]]), page.Notes([text])]},
        versions={"python": text},
        resolved=text,
    )
    progress.log(text)
    progress.print_result(text)
    captured = capsys.readouterr()
    for written in (page.html(document), page.markdown(document), captured.out, captured.err, printable(text)):
        assert control not in written and f"cats{escape}dogs" in written.replace("\\\\", "\\")


@given(st.text())
def test_printable_text_has_no_character_that_a_terminal_obeys(text):
    shown = printable(text)
    codes = {*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    assert not {ord(character) for character in shown} & codes
    assert printable(shown) == shown  # escapes are plain text
    assert text.isprintable() <= (shown == text)


def npy(shape: str, data: bytes = b"", descr: str = "<i4") -> bytes:
    """Return the bytes of a .npy file whose header states any shape."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        npy("(1000000000,)"),
        npy("(10000000000000,)"),
        npy("(-1,)"),
        npy("(3,)", bytes(11)),
        npy("(3", bytes(12)),
        npy("(2,)", bytes(16), descr="|O"),
        npy("(" * 200 + ")" * 200),
        b"",
        b"\x93NUMPY",
    ],
)
def test_an_array_is_as_large_as_its_file(data, tmp_path, peak):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(KdError, match=r"a\.npy: expected an array"):
        files.read_array(tmp_path / "a.npy")
    assert peak() < 2**20


def test_compressed_arrays_are_refused(tmp_path, peak):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy("(25000000,)", bytes(100_000_000)))
    tracemalloc.reset_peak()
    with pytest.raises(KdError, match=r"a\.npz: expected arrays as kd_jax writes them"):
        files.read_arrays(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 200_000 and peak() < 2**20


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (4, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_written_arrays_are_read(shape, order, tmp_path):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), order=order)
    manifest.write_array(tmp_path / "a.npy", array)
    manifest.write_arrays(tmp_path / "a.npz", x=array)
    for read in (files.read_array(tmp_path / "a.npy"), files.read_arrays(tmp_path / "a.npz")["x"]):
        assert read.dtype == array.dtype and read.shape == array.shape and (read == array).all()


@pytest.mark.parametrize("text", ["null", "[]", '"x"', "[" * 100_000, "1" * 5000, "{", "\udcff"])
def test_a_manifest_of_any_text_is_one_line(text, tmp_path):
    for name in ("manifest.json", "inputs.json"):
        (tmp_path / name).write_text(text, errors="surrogateescape")
    for read in (Folder(tmp_path, "prepare").outputs, Folder(tmp_path, "prepare").inputs):
        with pytest.raises(KdError, match=r"manifest\.json: expected") as error:
            read()
        assert "\n" not in str(error.value)


def with_digest(value: dict) -> str:
    """Return an object with the digest that a manifest of these values has."""
    return json.dumps({**value, "digest": manifest._digest(value)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"outputs": None}, "manifest.json: outputs: expected a dict"),
        ({"outputs": {}}, "manifest.json: outputs: expected vocab_size, got none"),
        ({"outputs": {"vocab_size": "60"}}, "manifest.json: outputs.vocab_size: expected an integer, got '60'"),
        ({"files": {"a": 1}}, "manifest.json: files.a: expected a string, got 1"),
        ({"seconds": [1]}, r"manifest.json: seconds: expected a number, got \[1\]"),
    ],
)
def test_a_manifest_with_a_digest_redone_by_hand_is_one_line(change, message, tmp_path):
    valid = {"phase": "prepare", "inputs": {}, "outputs": {"vocab_size": 60}, "files": {}, "seconds": 1.0}
    (tmp_path / "manifest.json").write_text(with_digest(valid))
    assert Folder(tmp_path, "prepare").outputs()["vocab_size"] == 60
    (tmp_path / "manifest.json").write_text(with_digest({**valid, **change}))
    with pytest.raises(KdError, match=message):
        Folder(tmp_path, "prepare").outputs()["vocab_size"]


@pytest.mark.parametrize(
    "change",
    [
        {"count": 2**62},
        {"count": -1},
        {"records_per_shard": 0},
        {"records_per_shard": [1]},
        {"shards": []},
        {"shards": None},
        {"schema": {"x": [[0], "int32"]}},
        {"schema": {"x": [[], "object"]}},
        {"schema": {"x": 1}},
    ],
)
def test_an_index_with_a_digest_redone_by_hand_is_one_line(change, tmp_path, peak):
    store.write(tmp_path, "s", {"x": Field((), "int32")}, 3, lambda a, b: [{"x": np.arange(2)}] * (b - a), 2)
    path = tmp_path / "s.index.json"
    index = {**json.loads(path.read_text()), **change}
    del index["digest"]
    path.write_text(json.dumps({**index, "digest": store._digest(index)}))
    with pytest.raises(KdError, match=r"s\.index\.json: "):
        store.Store(tmp_path, "s")
    assert peak() < 2**24


def test_records_of_another_schema_are_one_line(tmp_path):
    store.write(tmp_path, "s", {"x": Field((), "int32")}, 3, lambda a, b: [{"x": np.arange(2)}] * (b - a))
    path = tmp_path / "s.index.json"
    index = json.loads(path.read_text()) | {"schema": {"x": [[4000], "int32"]}}
    del index["digest"]
    path.write_text(json.dumps({**index, "digest": store._digest(index)}))
    with pytest.raises(KdError, match=r"s-00000\.arrayrecord: expected record 0 of the index's schema"):
        store.Store(tmp_path, "s")[0]


@pytest.mark.parametrize("data", [b"", b"noise" * 100, b"\x0a"])
def test_a_broken_tokenizer_is_one_line(data, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(KdError, match=r"tokenizer\.model: expected a SentencePiece model, got other bytes"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("task",), "x", "task: expected Task, got 'x'"),
        (("teacher",), None, "teacher: expected Recipe, got None"),
        (("teacher", "fields", "model"), [], r"teacher.model: expected"),
        (("students",), [], r"students: expected a dict of names and Recipe"),
        (("buckets",), 32, "buckets: expected a tuple of integers, got 32"),
        (("seed",), "0", "seed: expected an integer, got '0'"),
    ],
)
def test_an_experiment_with_a_value_of_another_type_is_one_line(place, value, message, root, tmp_path):
    workdir = Workdir(tmp_path)
    write_experiment(workdir, apply_overrides(str(root / "experiments/configs/smoke.py"), []))
    data = json.loads(workdir.config.read_text())
    read_experiment(workdir)
    inner = data["fields"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    workdir.config.write_text(json.dumps(data))
    with pytest.raises(KdError, match=f"experiment.json: {message}"):
        read_experiment(workdir)


def test_flat_log_probabilities_share_no_entries(tmp_path, peak):
    """A line of 1.6 MB, in which 20,000 positions each claim the same 20,000 entries."""
    count = 20_000
    flat = {"start_indices": [0] * count, "end_indices": [count] * count, "token_ids": [5] * count}
    flat |= {"logprobs": [-1.0] * count, "ranks": [1] * count}
    (tmp_path / "f").write_text(json.dumps({"prompt_token_ids": [5] * count, "prompt_logprobs": flat}))
    with pytest.raises(KdError, match="record 1, token 1: expected entries between 20000 and 20000, got 0 to 20000"):
        list(vllm.read(tmp_path / "f"))
    assert peak() < 100 * 2**20


def test_one_long_position_does_not_widen_the_others(tmp_path, peak):
    """A line of 1.5 MB whose array would take 6.4 GB."""
    count = 20_000
    long = {str(i): {"logprob": -9.0, "rank": i + 1} for i in range(count)}
    short = {"5": {"logprob": -1.0, "rank": 1}}
    line = {"prompt_token_ids": [5] * count, "prompt_logprobs": [None, long, *[short] * (count - 2)]}
    (tmp_path / "f").write_text(json.dumps(line))
    with pytest.raises(KdError, match="expected about as many named tokens at each position, got 20000 at one"):
        list(vllm.read(tmp_path / "f"))
    assert peak() < 200 * 2**20


def test_repeated_values_of_a_parquet_file_are_refused(tmp_path, peak):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    from kd_jax.teaching.imported.readers import distillkit

    settings = {"d": 16, "k": 2, "exact_k": 2, "residual_bins": []}
    (tmp_path / "compression_config.yaml").write_text(json.dumps(settings))
    row = pyarrow.array([[0] * 3_000_000], pyarrow.list_(pyarrow.int64()))
    rows = pyarrow.array([[[0] * 3_000_000]], pyarrow.list_(pyarrow.list_(pyarrow.uint8())))
    table = pyarrow.table({distillkit.COLUMNS[0]: row, distillkit.COLUMNS[1]: rows, distillkit.COLUMNS[2]: rows})
    parquet.write_table(table, tmp_path / "f.parquet", compression="zstd")
    tracemalloc.reset_peak()
    with pytest.raises(KdError, match="expected bytes of log-probabilities, got 9000000 repeated values"):
        list(distillkit.read(tmp_path / "f.parquet"))
    assert peak() < 2**24


def test_settings_of_nested_aliases_are_one_line(tmp_path):
    from kd_jax.teaching.imported.readers import distillkit

    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = tmp_path / "compression_config.yaml"
    path.write_text("\n".join([*lines, "k: *a11"]))
    with pytest.raises(KdError, match="expected DistillKit's settings"):
        distillkit.read_compression(path)
    path.write_text("d: &d " + "[" * 50 + "]" * 50 + "\nk: 1\nexact_k: 0\nresidual_bins: []")
    with pytest.raises(KdError, match="d: expected an integer"):
        distillkit.read_compression(path)
    path.write_text("k: 1\n" * 20_000)
    with pytest.raises(KdError, match="got a file above 65536 bytes"):
        distillkit.read_compression(path)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_array_or_one_line(data):
    try:
        files._parse_array(files.Path("a.npy"), data)
    except KdError as error:
        assert "\n" not in str(error)
    buffer = io.BytesIO()
    np.save(buffer, np.arange(5))
    changed = bytearray(buffer.getvalue())
    for i, byte in enumerate(data[:20]):
        changed[(i * 7 + byte) % len(changed)] ^= byte
    try:
        assert files._parse_array(files.Path("a.npy"), bytes(changed)).nbytes <= len(changed)
    except KdError as error:
        assert "\n" not in str(error)
