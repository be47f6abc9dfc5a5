"""Small folders in Hugging Face's layout, without transformers: random parameters and a small tokenizer."""

import json
import math
from collections import Counter

import jax
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.huggingface.write import write_model
from kd_jax.sources.toy import Toy

TEXTS = [text for row in Toy(100).splits(("en", "fr"))["train"] for text in row.values()]
SMALL = {"d_model": 16, "heads": 4, "d_ff": 32, "dropout": 0.0}
MODELS = {
    "decoder_only": DecoderOnly(layers=3, **SMALL | {"kv_heads": 2}),
    "encoder_decoder": EncoderDecoder(3, 3, **SMALL, head_bias=True),
}
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}[assistant]{% endif %}"


def train_bpe(texts=TEXTS):
    """Train a byte-level BPE tokenizer, as of GPT-2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>", "<2fr>"]
    options = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, **options))
    return tokenizer


def train_unigram(texts=TEXTS):
    """Make a unigram tokenizer with spaces as pieces and </s> after an encoder's text, as of T5.

    The pieces are counted here: UnigramTrainer's differ from call to call.
    """
    words = Counter(
        f"▁{word}" for text in [*texts, "[user] Say: [assistant]"] for word in text.split()
    )  # CHAT's letters
    letters = Counter(letter for word in words.elements() for letter in word)
    counts = Counter()
    for word, count in words.items():
        counts.update({word[i:j]: count for i in range(len(word)) for j in range(i + 2, len(word) + 1)})
    special = ["<pad>", "<s>", "</s>", "<unk>", "<2fr>"]
    longest = sorted(counts, key=lambda piece: (-counts[piece] * len(piece), piece))[
        : 120 - len(special) - len(letters)
    ]
    frequent = Counter({piece: counts[piece] for piece in longest}) + letters
    pieces = [(piece, math.log(count / frequent.total())) for piece, count in sorted(frequent.items())]
    tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in special] + pieces, unk_id=special.index("<unk>")))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


TOKENIZERS = {"decoder_only": train_bpe, "encoder_decoder": train_unigram}


def write_pretrained(folder, family, *, rows=0, chat=""):
    """Write a model with `rows` rows in its embedding (0: one per token) to the folder; return the folder."""
    folder.mkdir(exist_ok=True)
    tokenizer, model = TOKENIZERS[family](), MODELS[family]
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **words}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if chat:
        (folder / "chat_template.jinja").write_text(chat)
    ids = {f"{name}_id": tokenizer.token_to_id(word) for name, word in words.items()}
    if family == "encoder_decoder":
        ids |= {"decoder_start_token_id": ids["pad_token_id"]}
    size = rows or tokenizer.get_vocab_size()
    params = model.build(size).init(jax.random.key(0))
    write_model(folder, model, jax.tree.map(lambda x: 2.0 * x, params), ids, size)
    return folder
