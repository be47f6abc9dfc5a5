"""Configuration files of a model folder in Hugging Face's layout: special tokens, languages, suppressed ids."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError

Json = Mapping[str, Any]
Special = TypeVar("Special")
TOKENIZER_CONFIG, MODEL_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "config.json", "generation_config.json"
SPECIAL, ROWS = "tokenizer_special.json", "tokenizer_rows.npy"  # kd_jax's own, beside a copied tokenizer
MULTILINGUAL = ("m2m_100", "mbart")  # model types whose texts begin with a language token


def read_special(path: Path, kind: type[Special]) -> Special:
    """Return the dataclass whose fields are in a tokenizer_special.json.

    Raises:
      KdError: if the file has other fields, as another version of kd_jax may write.
    """
    try:
        return kind(**manifest.read_json(path))
    except TypeError as error:
        raise KdError(f"{path}: expected the fields of {kind.__name__}, got others. Run `prepare --force`.") from error


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the fields of config.json, overridden by generation_config.json's; {} without these files."""
    config: dict[str, Any] = {}
    for name in (MODEL_CONFIG, GENERATION_CONFIG):
        if (folder / name).exists():
            config |= {key: value for key, value in manifest.read_json(folder / name).items() if value is not None}
    return config


def named_tokens(tokenizer_config: Json, names: Iterable[str]) -> dict[str, str]:
    """Return name -> token of the special tokens that a tokenizer_config.json has.

    Examples:
      >>> named_tokens({"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}, ("bos", "eos", "pad"))
      {'eos': '</s>', 'pad': '<pad>'}
    """
    tokens = {name: tokenizer_config.get(f"{name}_token") for name in names}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in tokens.items() if token is not None}


def suppressed_ids(model_config: Json) -> list[int]:
    """Return the ids that the folder's model never generates; suppressed sequences of several ids are ignored.

    Examples:
      >>> suppressed_ids({"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [3]})
      [3, 7]
    """
    single = [ids[0] for ids in model_config.get("bad_words_ids", ()) if len(ids) == 1]
    return sorted({*single, *model_config.get("suppress_tokens", ())})


def language_tokens(
    tokenizer_config: Json, model_config: Json, ids: Mapping[str, int], source: str, target: str
) -> list[str]:
    """Return the tokens of the source and the target language; [] for a model without language tokens.

    Args:
      tokenizer_config: fields of tokenizer_config.json.
      model_config: as `read_model_config` returns it.
      ids: token -> id.
      source: the field `tokenizer.source`; "" for the folder's.
      target: the field `tokenizer.target`; "" for the folder's.

    Raises:
      KdError: if a language is missing or not in the vocabulary, or the model has no language tokens.
    """
    kind = model_config.get("model_type")
    if kind not in MULTILINGUAL:
        for field, language in (("source", source), ("target", target)):
            if language:
                raise KdError(
                    f"tokenizer.{field}: expected '' for a model of type {kind}, which has no language tokens, got "
                    f"{language!r}. Put an instruction into tokenizer.prefix instead."
                )
        return []
    tokens = {i: token for token, i in ids.items()}
    default_target = tokens.get(model_config.get("forced_bos_token_id", -1), "")
    both = {"source": source or tokenizer_config.get("src_lang") or "", "target": target or default_target}
    for field, language in both.items():
        if language not in ids:
            raise KdError(
                f"tokenizer.{field}: expected a language token of the {kind} folder, got {language!r}. Name one, such "
                "as eng_Latn (NLLB) or en_XX (mBART)."
            )
    return list(both.values())


def renumber_added_tokens(tokenizer_config: Json, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return a tokenizer_config.json with new ids (old id -> new id) of its added tokens.

    Examples:
      >>> config = {"added_tokens_decoder": {"5": "<s>", "7": "<pad>"}, "eos_token": "</s>"}
      >>> renumber_added_tokens(config, {7: 1})  # 5 is removed
      {'added_tokens_decoder': {'1': '<pad>'}, 'eos_token': '</s>'}
    """
    if "added_tokens_decoder" not in tokenizer_config:
        return dict(tokenizer_config)
    tokens = {int(old): token for old, token in tokenizer_config["added_tokens_decoder"].items()}
    return {**tokenizer_config, "added_tokens_decoder": {str(new_ids[i]): tokens[i] for i in tokens if i in new_ids}}
