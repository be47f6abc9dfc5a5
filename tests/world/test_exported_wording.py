"""The code of a model card, run by transformers in the exported folder, gives the texts that kd_jax generates."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kd_jax.batches.layouts import Bucket
from kd_jax.evaluation.loaded_model import LoadedModel
from kd_jax.experiment import ResolvedExperiment, resolve
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.transformer import Transformer
from kd_jax.phases import export
from kd_jax.students.pretrained import FromHuggingFace, select_vocab_rows
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.generation import Generation
from kd_jax.tasks.instructions import Instructions
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.sentencepiece import SentencePiece
from tests.helpers.pretrained import CHAT, TEXTS, TOKENIZERS, write_pretrained
from tests.helpers.runs import smoke
from tests.helpers.translators import write_bart, write_m2m100, write_marian, write_network, write_nllb

hf = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

LONGEST = 10
DECODING = Decoding(beam=1, length_ratio=0.0, length=LONGEST)
SIZES = {"d_model": 16, "heads": 4, "d_ff": 32, "dropout": 0.0}
OWN = {"encoder_decoder": EncoderDecoder(1, 2, **SIZES), "decoder_only": DecoderOnly(2, **SIZES)}
OWN["qwen2"] = dataclasses.replace(OWN["decoder_only"], biases="qkv")
PROMPTS = ["two boats", "the red bird sees  three clouds", "a", "É ☃ 😀 one", "</s> <s> two", " blank "]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Case(NamedTuple):
    """A tokenizer, a task and a network.

    Attributes:
      task: of the experiment.
      write: writes a folder in Hugging Face's layout; None for our own tokenizer.
      options: of HuggingFaceTokenizer, or of SentencePiece.
      family: key of OWN for a random network of ours; "" for that of the folder.
    """

    task: Any
    write: Any = None
    options: dict[str, Any] = {}
    family: str = ""


def write_t5(folder):
    """Write T5's network and its tokenizer, </s> after a text."""
    tokenizer = TOKENIZERS["encoder_decoder"]()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    return save(folder, hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=130, **sizes, **ids)))


def write_llama(folder, metaspace=True, rows=300, names=None, config=hf.LlamaConfig, model=hf.LlamaForCausalLM):
    """Write a decoder-only network with Llama 2's kind of tokenizer (BPE with bytes), or a byte-level one."""
    tokenizer = train_llama_bpe() if metaspace else TOKENIZERS["decoder_only"]()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = names or {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **names}))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {f"{name}_id": tokenizer.token_to_id(token) for name, token in names.items() if token and "unk" not in name}
    return save(folder, model(config(vocab_size=max(rows, tokenizer.get_vocab_size()), **sizes, **ids)))


def train_llama_bpe():
    """Train a BPE tokenizer with spaces as pieces, unknown characters as bytes, and <s> before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special[:3], show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] |= {piece: len(spec["model"]["vocab"]) + i for i, piece in enumerate(special[3:])}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_qwen2(folder):
    """Write a network with Qwen 2's kind of tokenizer, which adds no token to a text."""
    names = {"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>"}
    write_llama(folder, False, 420, names, hf.Qwen2Config, hf.Qwen2ForCausalLM)
    spec = json.loads((folder / "tokenizer.json").read_text())
    split = pre_tokenizers.Split(hf_regex(), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.save(str(folder / "tokenizer.json"))
    names |= {"tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def hf_regex():
    """Return the pattern by which transformers' Qwen2Tokenizer splits texts."""
    from tokenizers import Regex
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return Regex(PRETOKENIZE_REGEX)


def write_chat(folder):
    """Write a byte-level decoder-only folder with a chat template that trims messages."""
    return write_pretrained(folder, "decoder_only", chat=CHAT.replace("m.content", "m.content | trim"))


def with_network(write):
    """Return a writer of the folder with a random network that transformers saves."""

    def write_both(folder):
        write(folder)
        return write_network(folder, len(hf.AutoTokenizer.from_pretrained(folder)))

    return write_both


def save(folder, network):
    """Save a network with random parameters of some size; return the folder."""
    with torch.no_grad():
        for name, x in network.named_parameters():
            x.add_((0.2 if "embed" in name or "shared" in name else 0.6) * torch.randn_like(x))
    network.save_pretrained(folder)
    return folder


WORDS = Translation("en", "fr", decoding=DECODING)
TAGGED = Translation("text", "other", direction="way", directions=("en-fr",), decoding=DECODING)
CONTINUED = Generation(decoding=DECODING)
CHATTED = Instructions(decoding=DECODING)
SHORT = Summarization(document_tokens=3, decoding=DECODING)
SUM = {"prefix": "summarize: "}
CASES = {
    "own": Case(WORDS, family="encoder_decoder"),
    "own_causal": Case(WORDS, family="decoder_only"),
    "own_continued": Case(CONTINUED, family="decoder_only"),
    "own_bytes": Case(WORDS, options={"model_type": "bpe", "byte_fallback": True}, family="decoder_only"),
    "own_tagged": Case(TAGGED, family="encoder_decoder"),
    "own_short": Case(SHORT, family="encoder_decoder"),
    "own_qwen2": Case(WORDS, family="qwen2"),
    "marian": Case(WORDS, with_network(write_marian), {"target": ">>fra<<"}),
    "marian_short": Case(SHORT, with_network(write_marian), {"target": ">>fra<<"}),
    "m2m100": Case(WORDS, with_network(write_m2m100), {"target": "__fr__"}),
    "nllb": Case(WORDS, with_network(write_nllb), {"source": "deu_Latn", "target": "fra_Latn"}),
    "bart": Case(SHORT, with_network(write_bart)),
    "t5": Case(WORDS, write_t5, {"prefix": "translate English to French: "}),
    "t5_short": Case(SHORT, write_t5, SUM),
    "t5_causal": Case(WORDS, write_t5, SUM, family="decoder_only"),
    "llama": Case(WORDS, write_llama),
    "llama_continued": Case(CONTINUED, write_llama),
    "llama_short": Case(SHORT, write_llama, SUM),
    "llama_encoder": Case(WORDS, write_llama, SUM, family="encoder_decoder"),
    "byte_level": Case(WORDS, lambda folder: write_llama(folder, metaspace=False)),
    "byte_level_pruned": Case(SHORT, lambda folder: write_llama(folder, metaspace=False), SUM | {"cut": True}),
    "qwen2": Case(WORDS, write_qwen2),
    "qwen2_continued": Case(CONTINUED, write_qwen2),
    "chat": Case(CHATTED, write_chat, {"chat": True}),
    "chat_prefix": Case(CHATTED, write_chat, {"chat": True, "prefix": "Say: "}),
    "chat_short": Case(SHORT, write_chat, {"chat": True} | SUM),
}


def make(case: Case, path: Path, root: Path) -> tuple[ResolvedExperiment, Any, Transformer, Any]:
    """Return the experiment, the tokenizer, the network's sizes and its parameters."""
    torch.manual_seed(1)  # before a network is made
    base = dataclasses.replace(smoke(root, []), task=case.task, students={}, comparison=None)
    if case.write:
        folder = path / "model"
        folder.mkdir()
        init = FromHuggingFace(str(case.write(folder)))
        settings = HuggingFaceTokenizer(**case.options).with_folder(str(folder))
    else:
        settings = SentencePiece(**{"vocab_size": 400 if case.options else 60} | case.options)
    (path / "data").mkdir()
    settings.check()
    settings.prepare(TEXTS[:40] if case.options.get("cut") else TEXTS, path / "data", case.task.symbols())
    tokenizer = settings.load(path / "data")
    if case.family:
        architecture = OWN[case.family]
        params = jax.tree.map(lambda x: 2 * x, architecture.build(tokenizer.vocab_size).init(jax.random.key(1)))
        # Never the most probable: unknown tokens and single bytes, which transformers shows otherwise or not at all.
        rare = [i for i, piece in enumerate(tokenizer.pieces()) if piece == "<unk>" or piece.startswith("<0x")]
        params["embedding"] = params["embedding"].at[np.asarray(rare)].set(0.0)
    else:
        architecture, params = init.architecture(), init.load_params(tokenizer.rows_V)
        if case.options.get("cut"):
            architecture = dataclasses.replace(architecture, vocab_rows=0)
            params = select_vocab_rows(params, tokenizer.rows_V)
    recipe = dataclasses.replace(base.teacher, model=architecture)
    return resolve(dataclasses.replace(base, teacher=recipe)), tokenizer, architecture, params


def ours(case: Case, tokenizer, architecture, params, prompts) -> list[str]:
    """Return the texts that LoadedModel generates."""
    loaded = LoadedModel(
        architecture,
        params,
        tokenizer,
        lambda text: case.task.encode_prompt(text, tokenizer),
        case.task.decoding,
        [Bucket(32, 32)],
        [32, 64],
    )
    return loaded.generate(prompts)


def run_card(card: str, folder: Path, prompts: list[str], monkeypatch) -> list[str]:
    """Run the Python code of a model card in its folder, with other texts, and return what it prints."""
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    code, count = re.subn(r"^texts = .*$", lambda _: f"texts = {prompts!r}", code, flags=re.M)
    assert count == 1
    printed = []
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    exec(code, {"print": printed.append})
    return printed[0]


def prompts_for(case: Case) -> list[str]:
    return [f"<2fr> {text}" for text in PROMPTS] if case.task is TAGGED else PROMPTS


@pytest.mark.parametrize("name", CASES)
def test_transformers_generates_our_texts(name, root, tmp_path, monkeypatch):
    case = CASES[name]
    experiment, tokenizer, architecture, params = make(case, tmp_path, root)
    prompts, exported = prompts_for(case), tmp_path / "exported"
    exported.mkdir()
    ids = tokenizer.export(exported, architecture.family, case.task.prompted)
    export.write_transformers(exported, experiment, architecture, params, tokenizer, ids)
    card = export.usage_code(experiment, tokenizer, architecture, "transformers", prompts)
    texts = ours(case, tokenizer, architecture, params, prompts)
    assert len(set(texts)) > 2, texts
    assert run_card(card, exported, prompts, monkeypatch) == texts
