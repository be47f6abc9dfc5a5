"""llama.cpp's own converter reads an exported folder, and the program generates our texts.

It needs xllamacpp, gguf, and LLAMA_CPP, the folder of llama.cpp's source with convert_hf_to_gguf.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from kd_jax.phases import export
from kd_jax.tasks.generation import Generation
from tests.helpers.pretrained import TOKENIZERS
from tests.world.test_exported_wording import DECODING, LONGEST, Case, make, ours, write_llama

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
PROMPTS = ["two boats", "the red bird sees  three clouds", "a", "É ☃ 😀 one 1234", "two"]
CONVERT = """\
import sys
import convert_hf_to_gguf as converter
from conversion.base import TextModel

TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
converter.main()
"""

pytestmark = pytest.mark.extended


def write_smol(folder):
    """Write a network with SmolLM2's kind of tokenizer: byte-level, and each digit is a token."""
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    write_llama(folder, metaspace=False, rows=0, names=names)
    tokenizer = TOKENIZERS["decoder_only"]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("cut", [False, True])
def test_llama_cpp_generates_our_texts(cut, root, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    if not (Path(LLAMA_CPP) / "convert_hf_to_gguf.py").is_file():
        pytest.skip("LLAMA_CPP has no convert_hf_to_gguf.py")
    case = Case(Generation(decoding=DECODING), write_smol, {"cut": cut})
    experiment, tokenizer, architecture, params = make(case, tmp_path, root)
    exported, gguf = tmp_path / "exported", tmp_path / "student.gguf"
    exported.mkdir()
    ids = tokenizer.export(exported, architecture.family, case.task.prompted)
    export.write_transformers(exported, experiment, architecture, params, tokenizer, ids)
    arguments = [str(exported), "--outfile", str(gguf), "--outtype", "f32"]
    environment = os.environ | {"PYTHONPATH": LLAMA_CPP}
    converted = subprocess.run(
        [sys.executable, "-c", CONVERT, *arguments], capture_output=True, text=True, env=environment
    )
    assert converted.returncode == 0, converted.stderr[-2000:]
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.warmup = str(gguf), 256, 1, False
    options.n_gpu_layers, options.ui, options.cpuparams.n_threads, options.cpuparams_batch.n_threads = 0, False, 1, 1
    server = xllamacpp.Server(options)
    texts = []
    for prompt in PROMPTS:
        request = {"prompt": prompt, "n_predict": LONGEST, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
        texts.append(server.handle_completions(request)["choices"][0]["text"])
    expected = ours(case, tokenizer, architecture, params, PROMPTS)
    assert len(set(expected)) > 2, expected
    assert texts == expected
