"""Which weights of a folder are the model's, as transformers chooses them; and files that cannot be weights."""

import dataclasses
import json
import os
import shutil
import struct
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kd_jax.errors import KdError
from kd_jax.models.huggingface import files
from kd_jax.models.huggingface.read import read_architecture, read_model
from kd_jax.models.huggingface.write import write_model
from kd_jax.students.init import random_params
from tests.models.huggingface.shapes import MODELS, V


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    tensors = dict(load_file(folder / files.SINGLE_FILE))
    change(tensors)
    save_file(tensors, folder / files.SINGLE_FILE, metadata={"format": "pt"})


class TestTransformers:
    """Folders that transformers reads: the same logits, or a refusal."""

    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory):
        """Return name -> folder of a small model, saved once by transformers."""
        cases = pytest.importorskip("tests.models.huggingface.cases")
        folders = {}

        def save(name):
            if name not in folders:
                folders[name] = tmp_path_factory.mktemp(name)
                cases.save_random(name, folders[name])
            return folders[name]

        return save

    def check(self, folder):
        from tests.world.hf_folders import TOLERANCE, examples_of, our_logits, read_config, their_logits

        config = read_config(folder)
        examples = examples_of(config)
        ours, theirs = our_logits(folder, examples), their_logits(folder, config, examples)
        np.testing.assert_allclose(ours[examples[0][1]], theirs[examples[0][1]], atol=TOLERANCE)

    def test_a_single_file_comes_before_an_index(self, saved, tmp_path):
        """Old shards beside a newer file."""
        from tests.models.huggingface.cases import hf

        folder = shutil.copytree(saved("llama"), tmp_path / "copy")
        network = hf.LlamaForCausalLM.from_pretrained(folder)
        for parameter in network.parameters():
            parameter.data.add_(1.0)
        network.save_pretrained(tmp_path / "old", max_shard_size="10kB")
        for path in (tmp_path / "old").glob("model*"):
            shutil.copy(path, folder)
        assert (folder / files.INDEX).exists() and (folder / files.SINGLE_FILE).exists()
        self.check(folder)

    def test_a_folder_saved_twice_is_read(self, saved, tmp_path):
        """Shards that a later save with other sizes left over are not of the model."""
        from tests.models.huggingface.cases import hf

        network = hf.LlamaForCausalLM.from_pretrained(saved("llama"))
        network.save_pretrained(tmp_path, max_shard_size="10kB")
        network.save_pretrained(tmp_path)
        save_file({"junk": np.zeros(1, np.float32)}, tmp_path / "model-00001-of-00009.safetensors")
        (tmp_path / files.INDEX).write_text(json.dumps({"weight_map": {"junk": "model-00001-of-00009.safetensors"}}))
        self.check(tmp_path)

    @pytest.mark.parametrize(
        "name", ["llama", "t5_gated", *(pytest.param(x, marks=pytest.mark.extended) for x in ("qwen2", "bart", "t5"))]
    )
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("held", ["embedding", "head", "both", "equal"])
    def test_tied_matrices(self, saved, tmp_path, name, tied, held):
        """The file has the embedding, the output matrix, both, or one twice; config.json says tied or not."""
        from tests.world.hf_folders import examples_of, our_logits, read_config, their_logits

        folder = shutil.copytree(saved(name), tmp_path / "copy")
        embedding = {"bart": "model.shared.weight", "t5": "shared.weight", "t5_gated": "shared.weight"}.get(
            name, "model.embed_tokens.weight"
        )

        def hold(tensors):
            for copy in [tensor for tensor in tensors if tensor.endswith("coder.embed_tokens.weight")]:
                del tensors[copy]
            other = np.random.default_rng(0).normal(size=tensors[embedding].shape).astype(np.float32)
            tensors["lm_head.weight"] = tensors[embedding].copy() if held == "equal" else other
            if held in ("embedding", "head"):
                del tensors["lm_head.weight" if held == "embedding" else embedding]

        change_tensors(folder, hold)
        change_config(folder, tie_word_embeddings=tied)
        config = read_config(folder)
        ours, theirs = (f(folder, *a) for f, a in (
            (our_logits, (examples_of(config),)), (their_logits, (config, examples_of(config)))
        ))  # fmt: skip
        if name == "bart" and not tied and held in ("both", "equal"):
            # Version 5 unties the encoder's and the decoder's embedding as well, which no file of version 4 has.
            assert "embed_tokens" in str(theirs) and not isinstance(ours, Exception)
        elif isinstance(theirs, Exception):
            missing = "lm_head.weight" if held == "embedding" else embedding
            assert f"missing: {missing}" in str(ours), ours
        else:
            real_BT = examples_of(config)[0][1]
            np.testing.assert_allclose(ours[real_BT], theirs[real_BT], atol=1e-4)

    @pytest.mark.parametrize("name", ["t5", "m2m100"])
    def test_a_copy_of_the_embedding_that_differs_is_refused(self, saved, tmp_path, name):
        folder = shutil.copytree(saved(name), tmp_path / "copy")
        prefix = "" if name == "t5" else "model."

        def add(equal, tensors):
            embedding = tensors[f"{prefix}shared.weight"]
            tensors[f"{prefix}encoder.embed_tokens.weight"] = embedding + np.float32(not equal)

        change_tensors(folder, lambda tensors: add(True, tensors))
        self.check(folder)
        change_tensors(folder, lambda tensors: add(False, tensors))
        with pytest.raises(KdError, match=f"{prefix}encoder.embed_tokens.weight: expected a copy of {prefix}shared"):
            read_model(folder)


LLAMA = MODELS["decoder_only"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder, LLAMA, random_params(LLAMA, V, jax.random.key(0)), {}, V)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """Return a copy of a small Llama that a test may change."""
    return shutil.copytree(original, tmp_path / "copy")


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(shape, dtype="F32", offsets=(0, 0)):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HEADERS = {  # a header that lies -> what is written
    "longer than the file": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "length of 100 GB": lambda path: path.write_bytes(struct.pack("<Q", 10**11) + b"{}"),
    "no JSON": lambda path: write_header(path, b"\xff" * 64),
    "a list": lambda path: write_header(path, [1]),
    "empty file": lambda path: path.write_bytes(b""),
    "shape beyond the data": lambda path: write_header(path, {"a": tensor([10**6, 10**6], offsets=(0, 4))}, b"0000"),
    "offsets beyond the file": lambda path: write_header(path, {"a": tensor([10**9], offsets=(0, 4 * 10**9))}),
    "product overflows": lambda path: write_header(path, {"a": tensor([2**33, 2**33])}),
    "huge empty tensor": lambda path: write_header(path, {"model.embed_tokens.weight": tensor([0, 2**60])}),
    "huge empty axis": lambda path: write_header(path, {"model.embed_tokens.weight": tensor([2**60, 0])}),
    "scalar embedding": lambda path: write_header(
        path, {"model.embed_tokens.weight": tensor([], offsets=(0, 4))}, b"0000"
    ),
    "deep nesting": lambda path: write_header(path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_lies_is_refused_at_once(folder, name):
    HEADERS[name](folder / files.SINGLE_FILE)
    change_config(folder, num_hidden_layers=1)
    check_refusal(folder, ".")


def check_refusal(folder, message):
    """Check that a folder is refused in one line, within a second or two."""
    began = time.monotonic()
    for read in (read_architecture, read_model):
        with pytest.raises(KdError, match=message) as error:
            read(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"])
@pytest.mark.parametrize("size", [10**9, 2**31 - 1, 10**30])
def test_sizes_are_bounded_by_the_file(folder, key, size):
    """Nothing is allocated, and nothing loops, by a number that the tensors cannot have."""
    change_config(folder, **{key: size})
    check_refusal(folder, "num_hidden_layers: expected fewer layers|none with a width of|divisor|expected an integer")


def test_other_sizes_are_bounded_too(folder):
    change_config(folder, head_dim=10**9, num_attention_heads=10**9, num_key_value_heads=10**9)
    check_refusal(folder, "none with a width of")
    change_config(folder, model_type="gemma3_text", num_hidden_layers=10**9, layer_types=None)
    check_refusal(folder, "num_hidden_layers: expected fewer layers than the 11 tensors")


def make_pipe(path):
    os.mkfifo(path)


SPECIAL_FILES = {
    "pipe": make_pipe,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", SPECIAL_FILES)
@pytest.mark.parametrize("name", ["config.json", files.SINGLE_FILE, files.INDEX, "model-00001-of-00002.safetensors"])
def test_what_is_no_file_is_refused_without_hanging(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    SPECIAL_FILES[kind](folder / name)
    if name not in ("config.json", files.SINGLE_FILE):
        (folder / files.SINGLE_FILE).unlink()
    if name.startswith("model-"):
        (folder / files.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    check_refusal(folder, f"{name}: expected a file, got a pipe, device or folder")


def test_links_to_files_are_followed(folder, tmp_path):
    """The cache of Hugging Face's hub has links to blobs."""
    expected = read_model(folder)[1]
    (folder / files.SINGLE_FILE).rename(tmp_path / "blob")
    (folder / files.SINGLE_FILE).symlink_to(tmp_path / "blob")
    jax.tree.map(np.testing.assert_array_equal, read_model(folder)[1], expected)


INDEXES = [
    {},
    {"weight_map": None},
    {"weight_map": []},
    {"weight_map": {}},
    {"weight_map": {"a": 3}},
    {"weight_map": {"a": ["b"]}},
    {"weight_map": {"a": "../b"}},
    {"weight_map": {"a": "/etc/passwd"}},
    {"weight_map": {"a": ""}},
    {"weight_map": {"a": "."}},
    {"weight_map": {"a": ".."}},
    {"weight_map": {"a": "x\0y"}},
    {"weight_map": {"a": "x" * 300}},
    {"weight_map": {"a": "b", "c": 4}},
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_index_that_names_no_files_is_refused(folder, index):
    (folder / files.SINGLE_FILE).unlink()
    (folder / files.INDEX).write_text(json.dumps(index))
    check_refusal(folder, "weight_map|safetensors file|expected a file")


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"x"', "{", "[" * 10**5, '{"a":' * 10**5, "1" * 5000, "\xff"])
def test_config_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    check_refusal(folder, "config.json: expected a JSON")


@pytest.mark.parametrize("dtype", [np.int8, np.int64, bool])
def test_tensors_that_are_no_floats_are_refused(folder, dtype):
    name = "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))
    with pytest.raises(KdError, match=f"expected tensors of F32, BF16, F16, F64, got {name}"):
        read_model(folder)


def test_untied_model_without_an_output_matrix_is_incomplete(folder):
    change_config(folder, tie_word_embeddings=False)
    check_refusal(folder, "missing: lm_head.weight, since tie_word_embeddings is false")
    change_config(folder, tie_word_embeddings="no")
    check_refusal(folder, "tie_word_embeddings: expected true or false, got 'no'")


def test_untied_model_of_ours_is_written_and_read(tmp_path):
    untied = dataclasses.replace(LLAMA, tied=False)
    params = random_params(untied, V, jax.random.key(0))
    write_model(tmp_path, untied, params, {}, V)
    model, read_back = read_model(tmp_path)
    assert not model.tied
    np.testing.assert_array_equal(read_back["output"], np.asarray(params["output"]))
