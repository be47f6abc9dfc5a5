"""Reading a tokenizer.json, and what its model cannot write."""

import collections
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from kd_jax.errors import KdError
from kd_jax.tokenizers.hf_folder import check_ids, read_object
from kd_jax.tokenizers.prune_vocabulary import vocabulary
from kd_jax.tokenizers.sentencepiece import piece_bytes

Json = Mapping[str, Any]
MOST_LOST = 0.01  # share of the characters of training texts that may have no token
NAMED = 5  # characters that a message names


def read_spec(path: Path) -> dict[str, Any]:
    """Return a tokenizer.json with every key, as the library writes it, without padding, truncation and BPE-dropout.

    kd_jax pads and truncates itself. An id must be below the file's number of bytes, since tables have a row for each.
    """
    written = read_object(path)
    model = written.get("model")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        check_ids(model["vocab"], path)  # the library itself takes memory and time for the largest id
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(written))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        spec = json.loads(tokenizer.to_str())
    except Exception as error:  # the library raises no other class
        raise KdError(
            f"{path}: expected a file of the library tokenizers {tokenizers.__version__}, got the error: "
            f"{' '.join(str(error).split())[:200]}. Download it again, or install a newer tokenizers."
        ) from error
    check_ids(vocabulary(spec), path)
    if "dropout" in spec["model"]:
        spec["model"]["dropout"] = None
    return spec


def other_token(ours: Path, theirs: Path) -> str:
    """Return how a token of a folder's tokenizer differs in another folder's; "" if none does, or one has no such file.

    Args:
      ours: folder with a tokenizer.json, or with a vocab.json.
      theirs: folder whose tokenizer may have further tokens.
    """
    for name, read in {
        "tokenizer.json": lambda path: vocabulary(read_spec(path)),
        "vocab.json": read_object,
    }.items():
        if (ours / name).is_file() and (theirs / name).is_file():
            our_ids, their_ids = read(ours / name), read(theirs / name)
            different = (token for token, i in our_ids.items() if their_ids.get(token) != i)
            token = next(different, None)
            if token is None:
                return ""
            theirs_is = f"is token {their_ids[token]}" if token in their_ids else "is no token"
            return f"{token!r} {theirs_is}, here token {our_ids[token]}"
    return ""


def without_tokens_beyond(spec: dict[str, Any], rows: int) -> tuple[dict[str, Any], list[str]]:
    """Return the tokenizer.json without added tokens whose ids are `rows` or more, and these tokens.

    Examples:
      >>> spec = {"added_tokens": [{"content": "</s>", "id": 1}, {"content": "<image>", "id": 4}]}
      >>> without_tokens_beyond(spec, 4)
      ({'added_tokens': [{'content': '</s>', 'id': 1}]}, ['<image>'])
    """
    added = spec["added_tokens"]
    beyond = [token["content"] for token in added if token["id"] >= rows]
    return {**spec, "added_tokens": [token for token in added if token["id"] < rows]}, beyond


def has_every_character(spec: Json) -> bool:
    """Return whether every character has tokens: by an unknown token, or by bytes."""
    model, ids = spec["model"], vocabulary(spec)
    unknown = model.get("unk_id") if model["type"] == "Unigram" else model.get("unk_token")
    if unknown in ids or (model["type"] == "Unigram" and unknown is not None):
        return True
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in ids for byte in range(256)):
        return True
    return '"ByteLevel"' in json.dumps(spec["pre_tokenizer"]) and ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet())


def check_characters(tokenizer: tokenizers.Tokenizer, characters: collections.Counter[str], folder: str) -> str:
    """Describe the characters without a token, which are dropped from texts; "" if there are none.

    Raises:
      KdError: if they are more than the share MOST_LOST of the characters.
    """
    counts = {c: n for c, n in characters.most_common() if not c.isspace()}
    lost = {character: n for character, n in counts.items() if _is_lost(tokenizer, character)}
    described = f"{sum(lost.values())} of {sum(counts.values())} characters: {describe_characters(lost)}"
    if sum(lost.values()) > MOST_LOST * sum(counts.values()):
        raise KdError(
            f"tokenizer.folder: expected tokens for all characters of the training texts, got none in {folder!r} for "
            f"{described}. Use another tokenizer."
        )
    return described if lost else ""


def describe_characters(counts: Mapping[str, int]) -> str:
    """Describe characters by name, and how often they occur.

    Examples:
      >>> describe_characters({"é": 3, "☃": 1})
      "'é' (U+00E9, 3 times), '☃' (U+2603, 1 times)"
    """
    named = [f"{c!r} (U+{ord(c):04X}, {n} times)" for c, n in list(counts.items())[:NAMED]]
    return ", ".join(named) + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _is_lost(tokenizer: tokenizers.Tokenizer, character: str) -> bool:
    """Return whether a character that the normalizer keeps does not come back from its tokens."""
    kept = tokenizer.normalizer.normalize_str(character) if tokenizer.normalizer else character
    try:
        decoded = tokenizer.decode(tokenizer.encode(character, add_special_tokens=False).ids)
    except Exception:  # a unigram model without an unknown token
        return True
    return kept.strip(" \u2581") not in decoded


def bytes_of_token(spec: Json, folder: Path) -> Callable[[str], bytes]:
    """Return the function that maps a token of a tokenizer.json to the bytes that it adds to a text.

    Args:
      spec: the tokenizer.json.
      folder: with the file, for the message.

    Raises:
      KdError: if the decoder is neither byte-level nor of SentencePiece's kind.
    """
    decoder = json.dumps(spec["decoder"])
    if '"ByteLevel"' in decoder:
        byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        return lambda token: b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in token)
    if any(kind in decoder for kind in ('"Metaspace"', '"ByteFallback"', json.dumps("\u2581"))):
        return piece_bytes
    kind = (spec["decoder"] or {}).get("type", "none")
    raise KdError(
        f"tokenizer.folder: expected a decoder of bytes or of SentencePiece's kind in {folder / 'tokenizer.json'}, so "
        f"that tokens stand for fixed bytes, got {kind}. Use a tokenizer of these kinds."
    )


def byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte: those of GPT-2.

    Examples:
      >>> "".join(byte_letters()[byte] for byte in " né".encode())
      'ĠnÃ©'
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = dict(zip(printable, printable, strict=True)) | {byte: 256 + n for n, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]
