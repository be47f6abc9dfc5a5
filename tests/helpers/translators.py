"""Small tokenizers and random networks of translation models and BART, in the files of the published models."""

import io
import json

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from kd_jax.sources.toy import Toy
from kd_jax.tokenizers.m2m100 import CODES

ROWS = Toy(200).splits(("en", "fr"))["train"]
TEXTS = [text for row in ROWS for text in row.values()]
LANGUAGES = ["eng_Latn", "fra_Latn", "deu_Latn"]


def train_sentencepiece(texts, size, kind="unigram"):
    """Train a SentencePiece model with the special pieces <unk>, <s> and </s>; return its bytes."""
    model = io.BytesIO()
    options = {"vocab_size": size, "model_type": kind, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    return model.getvalue()


def pieces_of(model):
    """Return the pieces of a model without the special ones."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


def write_marian(folder, kind="unigram"):
    """Write two models and one vocabulary: padding is its last token, and two of the source's pieces have no id."""
    both = {
        name: train_sentencepiece([row[field] for row in ROWS], 80, kind)
        for name, field in {"source": "en", "target": "fr"}.items()
    }
    for name, model in both.items():
        (folder / f"{name}.spm").write_bytes(model)
    words = dict.fromkeys(["</s>", "<unk>", *pieces_of(both["source"])[:-2], *pieces_of(both["target"])])
    words = [*words, ">>fra<<", ">>oci<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "fr"}))
    pad = len(words) - 1
    ids = {"decoder_start_token_id": pad, "pad_token_id": pad, "eos_token_id": 0, "bos_token_id": 0}
    return write_configs(folder, "marian", ids | {"forced_eos_token_id": None}, {"bad_words_ids": [[pad]]})


def write_m2m100(folder):
    """Write the tokenizer of a hundred languages, whose tokens are in no file."""
    hf = pytest.importorskip("transformers")
    model = train_sentencepiece(TEXTS, 150, "bpe")
    words = ["<s>", "<pad>", "</s>", "<unk>", *pieces_of(model)[:-2]]
    files = {"vocab_file": folder / "v.json", "spm_file": folder / "m.model"}
    files["vocab_file"].write_text(json.dumps({word: i for i, word in enumerate(words)}))
    files["spm_file"].write_bytes(model)
    hf.M2M100Tokenizer(**{name: str(path) for name, path in files.items()}, src_lang="en").save_pretrained(folder)
    for path in files.values():
        path.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    languages = [f"__{code}__" for code in CODES["m2m100"].split()]  # as published
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"additional_special_tokens": languages}))
    ids = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    return write_configs(folder, "m2m_100", ids, {})


def write_nllb(folder, **options):
    """Write the tokenizer of three languages, without a target language."""
    hf = pytest.importorskip("transformers")
    vocab, merges = _train_bpe(pre_tokenizers.Metaspace(), ["<s>", "<pad>", "</s>", "<unk>"], 150)
    hf.NllbTokenizer(vocab, merges, extra_special_tokens=LANGUAGES, **options).save_pretrained(folder)
    ids = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    return write_configs(folder, "m2m_100", ids, {})


def write_bart(folder):
    """Write a byte-level tokenizer whose texts begin with a forced <s>."""
    hf = pytest.importorskip("transformers")
    vocab, merges = _train_bpe(pre_tokenizers.ByteLevel(), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], 320)
    hf.BartTokenizer(vocab, merges).save_pretrained(folder)
    ids = {"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    return write_configs(folder, "bart", ids | {"forced_eos_token_id": None}, {"forced_bos_token_id": 0})


def _train_bpe(pre_tokenizer, special, size):
    """Return the vocabulary and the merges of a BPE model."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if size > 256 else []
    options = {"vocab_size": size, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(**options))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def write_configs(folder, model_type, ids, generation):
    """Write config.json and generation_config.json with these ids; return the folder."""
    config = {"model_type": model_type, "is_encoder_decoder": True, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({**ids, **generation}))
    return folder


NETWORKS = {
    "marian": {"activation_function": "swish", "scale_embedding": True},
    "m2m_100": {"scale_embedding": True},
    "bart": {},
}
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}


def write_network(folder, vocab_size):
    """Write random weights as transformers does; return the folder. Marian's prefer padding if it is not suppressed."""
    hf, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = json.loads((folder / "config.json").read_text())
    generation = hf.GenerationConfig.from_pretrained(folder)
    settings = {**config, **SIZES, **NETWORKS[config["model_type"]], "vocab_size": vocab_size}
    torch.manual_seed(0)
    network = hf.AutoModelForSeq2SeqLM.from_config(hf.AutoConfig.for_model(**settings)).eval()
    with torch.no_grad():
        for parameter, x in network.named_parameters():
            if x.dim() > 1:
                x.add_((0.3 if "shared" in parameter or "embed" in parameter else 1.0) * torch.randn_like(x))
        for buffer, x in network.named_buffers():
            if buffer == "final_logits_bias":
                x.add_(torch.randn_like(x))
                x[:, config["eos_token_id"]] = 3.5
                x[:, config["pad_token_id"]] = 20.0 if config["model_type"] == "marian" else 0.0
    network.generation_config = generation
    network.save_pretrained(folder)
    return folder
