"""generation_config.json: which of its settings decide a text, and those that kd_jax applies.

A folder without the file has the settings in config.json, as in transformers. Nothing that changes a greedy text is
ignored: a setting is applied, or refused by name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError

NAME = "generation_config.json"
IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")  # found in config.json too
APPLIED = (
    *IDS, "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
    "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens",
    "top_k", "top_p", "min_p",
)  # fmt: skip
# Settings that change greedy texts and are not implemented -> values without an effect.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "assistant_ensemble_weight": (),
    "constraints": (),
    "dola_layers": (),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "max_time": (),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "stop_strings": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}
# Settings that greedy texts do not depend on. Lengths, beams and whether texts are drawn are arguments of ours.
WITHOUT_EFFECT = (
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "num_beams", "num_beam_groups", "length_penalty", "diversity_penalty", "early_stopping", "num_return_sequences",
    "low_memory", "renormalize_logits", "remove_invalid_values", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "use_mtp", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "speculation_type", "transformers_version", "_from_model_config",
)  # fmt: skip
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """What a folder says about decoding, in kd_jax's terms; `tasks.base.Decoding` has fields of these names.

    Attributes:
      no_repeat_ngram: length of n-grams that a text has once; 0 for no limit.
      no_source_ngram: length of n-grams of the prompt that a text has not; 0 for no limit.
      min_length: least number of tokens before the end token, without the forced ones.
      repetition_penalty: as in Sampling.
      top_k, top_p, min_p: as in Sampling; they matter if texts are drawn.
    """

    no_repeat_ngram: int = 0
    no_source_ngram: int = 0
    min_length: int = 0
    repetition_penalty: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


KEYS = {  # field of GenerationSettings -> key of the file
    "no_repeat_ngram": "no_repeat_ngram_size",
    "no_source_ngram": "encoder_no_repeat_ngram_size",
    "min_length": "min_length",
    "repetition_penalty": "repetition_penalty",
}


def merge(config: Config, generation: Config | None) -> dict[str, Any]:
    """Return config.json with the settings of generation that transformers reads, without nulls.

    With a generation_config.json, those of config.json do not count, but for the ids of an incomplete file.

    Examples:
      >>> merge({"eos_token_id": 2, "min_length": 5}, {"eos_token_id": [2, 7], "no_repeat_ngram_size": None})
      {'eos_token_id': [2, 7]}
      >>> merge({"eos_token_id": 2, "min_length": 5}, None)
      {'eos_token_id': 2, 'min_length': 5}
    """
    config = {key: value for key, value in config.items() if value is not None}
    if generation is None:
        if config.get("force_bos_token_to_be_generated") is True:  # BART of transformers 3
            config = {"forced_bos_token_id": config.get("bos_token_id"), **config}
        return _start_with_bos(config)
    generation = {key: value for key, value in generation.items() if value is not None}
    ours = {*APPLIED, *REFUSED, *WITHOUT_EFFECT} - set(IDS)
    return {**{key: value for key, value in config.items() if key not in ours}, **_start_with_bos(generation)}


def _start_with_bos(config: Config) -> dict[str, Any]:
    """Return a config in which the decoder's start is the text's, unless it names another."""
    start = {"decoder_start_token_id": config["bos_token_id"]} if "bos_token_id" in config else {}
    return {**start, **config}


def read_settings(config: Config, has_encoder: bool, forced_tokens: int) -> GenerationSettings:
    """Return the settings of a merged config; raise KdError for one that is not implemented.

    Args:
      config: from `merge`.
      has_encoder: whether the model is an encoder-decoder.
      forced_tokens: number of tokens that every text begins with.
    """
    for key, neutral in REFUSED.items():
        if key in config and config[key] not in neutral:
            raise KdError(
                f"{NAME}: {key}: expected none, since kd_jax does not implement it, got {config[key]!r:.60}. "
                "Remove it from the file to decode without it."
            )
    min_length, min_new = (_count(config, key) for key in ("min_length", "min_new_tokens"))
    if min_length and not has_encoder:
        raise KdError(
            f"{NAME}: min_length: expected min_new_tokens for a decoder-only model, whose min_length counts the prompt "
            f"and its padding, got {min_length}. Replace it."
        )
    return GenerationSettings(
        no_repeat_ngram=_count(config, "no_repeat_ngram_size"),
        no_source_ngram=_count(config, "encoder_no_repeat_ngram_size"),
        # The start token and forced tokens count in transformers.
        min_length=max(min_length - 1 - forced_tokens, min_new - forced_tokens, 0),
        repetition_penalty=_number(config, "repetition_penalty", 1.0, 100.0),
        top_k=_count(config, "top_k"),
        top_p=_number(config, "top_p", 1.0, 1.0),
        min_p=_number(config, "min_p", 0.0, 1.0) if config.get("min_p") else 0.0,
    )


def _count(config: Config, key: str) -> int:
    value = config.get(key, 0)
    if not (is_count(value, 0) and value < 2**31):
        raise KdError(f"{NAME}: {key}: expected an integer of at least 0, got {value!r:.60}.")
    return value


def _number(config: Config, key: str, default: float, largest: float) -> float:
    value = config.get(key, default)
    if key in config and not (is_number(value) and 0 < value <= largest):
        raise KdError(f"{NAME}: {key}: expected a number above 0 and at most {largest:g}, got {value!r:.60}.")
    return float(value)


def ids_of(config: Config, key: str) -> list[int]:
    """Return the ids under a key, which may be one id or a list; [] if it is absent.

    Examples:
      >>> ids_of({"eos_token_id": 7}, "eos_token_id"), ids_of({"eos_token_id": [7, 9]}, "eos_token_id")
      ([7], [7, 9])
      >>> ids_of({"eos_token_id": "</s>"}, "eos_token_id")
      Traceback (most recent call last):
      kd_jax.errors.KdError: generation_config.json: eos_token_id: expected ids of tokens, got '</s>'.
    """
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(is_count(i, 0) for i in ids):
        raise KdError(f"{NAME}: {key}: expected ids of tokens, got {value!r:.60}.")
    return ids


def single_id(config: Config, key: str) -> int:
    """Return the id under a key, which may be a list of one; -1 if it is absent."""
    ids = ids_of(config, key)
    if len(ids) > 1:
        raise KdError(f"{NAME}: {key}: expected one id, got {ids!r:.60}. Leave the one to use.")
    return ids[0] if ids else -1


def token_of(config: Config, key: str, words: Mapping[int, str]) -> str | None:
    """Return the token whose id is under a key; None if the key is absent."""
    token_id = single_id(config, key)
    if token_id >= 0 and token_id not in words:
        raise KdError(f"{NAME}: {key}: expected the id of a token, got {token_id}. Use the model's own tokenizer.")
    return words.get(token_id)


def end_tokens(config: Config, words: Mapping[int, str]) -> list[str]:
    """Return the tokens that end a text."""
    return [words[i] for i in ids_of(config, "eos_token_id") if i in words]


def first_suppressed_tokens(config: Config, words: Mapping[int, str]) -> list[str]:
    """Return the tokens that no text begins with."""
    return [words[i] for i in ids_of(config, "begin_suppress_tokens") if i in words]


def suppressed_ids(config: Config) -> list[int]:
    """Return the ids that no text has, as transformers suppresses them: an end token is no bad word."""
    words = config.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(isinstance(ids, list) and len(ids) == 1 for ids in words):
        raise KdError(
            f"{NAME}: bad_words_ids: expected lists of one id, got {words!r:.60}. Longer ones are not implemented: "
            "remove them to decode without them."
        )
    bad = {i for ids in words for i in ids_of({"bad_words_ids": ids}, "bad_words_ids")}
    return sorted({*(bad - set(ids_of(config, "eos_token_id"))), *ids_of(config, "suppress_tokens")})


def forces_end(config: Config, eos: int) -> bool:
    """Return whether a text that reaches the maximum length ends with the end token, whose id is `eos`."""
    forced = single_id(config, "forced_eos_token_id")
    if forced not in (-1, eos, *ids_of(config, "eos_token_id")):
        raise KdError(
            f"{NAME}: forced_eos_token_id: expected the end token, {eos}, got {forced}. Remove it to decode without it."
        )
    return forced >= 0
