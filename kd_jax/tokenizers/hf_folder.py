"""Files of a model folder in Hugging Face's layout, and the settings of tokenizers that read it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError
from kd_jax.tokenizers import generation_config

Json = Mapping[str, Any]
Special = TypeVar("Special")
TOKENIZER_CONFIG, MODEL_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "config.json", "generation_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"  # of older folders
VOCAB = "vocab.json"
COMMON_CONFIG = {  # of exported tokenizers; the class reads tokenizer.json as it is
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": int(1e30),  # transformers' "no limit"
    "split_special_tokens": True,  # "</s>" in a text is no token
}
SPECIAL, ROWS = "tokenizer_special.json", "tokenizer_rows.npy"  # kd_jax's own, beside a copied tokenizer
MULTILINGUAL = ("m2m_100", "mbart")  # model types whose texts begin with a language token


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """Base class of the settings of a pretrained model's tokenizer, whose files are in `folder`."""

    folder: str = ""

    pretrained: ClassVar[bool] = True
    kind: ClassVar[str]  # of the folder, in error messages
    required: ClassVar[tuple[str, ...]]  # names of files
    optional: ClassVar[tuple[str, ...]] = (MODEL_CONFIG, GENERATION_CONFIG)  # files that decide the tokenizer too
    sample = 0  # all texts, whose tokens `cut` keeps

    def require_files(self) -> None:
        """Raise KdError if a file of the folder is missing."""
        for name in self.required:
            if not (Path(self.folder) / name).is_file():  # a pipe or a device has no end
                raise KdError(
                    f"tokenizer.folder: expected {self.kind} with {', '.join(self.required)}, got {self.folder!r} "
                    f"without {name}. Copy the missing file, or name another local folder."
                )

    def input_files(self) -> tuple[Path, ...]:
        """Return the folder's files that decide the tokenizer."""
        paths = (Path(self.folder) / name for name in (*self.required, *self.optional))
        return tuple(path for path in paths if path.is_file())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of one of the folder's files."""
        return read_object(Path(self.folder) / name)

    def read_vocab(self) -> dict[str, int]:
        """Return token -> id of the folder's vocab.json."""
        ids = self.read_json(VOCAB)
        check_ids(ids, Path(self.folder) / VOCAB)
        return ids


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a stranger."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KdError(f"{path}: expected JSON, got the error: {error}. Download the file again.") from error
    if not isinstance(value, dict):
        raise KdError(f"{path}: expected a JSON object, got {str(value)[:30]!r}. Download the file again.")
    return value


def check_ids(ids: Mapping[str, Any], path: Path) -> None:
    """Raise KdError if there are no tokens, or an id (token -> id) is not an integer below the file's bytes."""
    size = path.stat().st_size
    for token, i in ids.items():
        if type(i) is not int or not 0 <= i < size:
            raise KdError(
                f"{path}: expected ids from 0 to the file's size, {size} bytes, got {i!r} for {token[:30]!r}."
            )
    if not ids:
        raise KdError(f"{path}: expected tokens, got none. Download the file again.")


def write_special(folder: Path, special: Any, rows: list[int]) -> None:
    """Write the dataclass of special tokens, and each token's row in the pretrained embedding."""
    manifest.write_json(folder / SPECIAL, dataclasses.asdict(special))
    manifest.write_array(folder / ROWS, np.asarray(rows, np.int32))


def read_special(folder: Path, kind: type[Special]) -> tuple[Special, np.ndarray]:
    """Return the special tokens and the rows that `write_special` wrote."""
    path = folder / SPECIAL
    try:
        return kind(**manifest.read_json(path)), files.read_array(folder / ROWS)
    except TypeError as error:  # another version of kd_jax may write other fields
        raise KdError(f"{path}: expected the fields of {kind.__name__}, got others. Run `prepare --force`.") from error


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the fields of config.json, and of generation_config.json in their place; {} without these files."""
    config, generation = (
        read_object(folder / name) if (folder / name).is_file() else None for name in (MODEL_CONFIG, GENERATION_CONFIG)
    )
    return generation_config.merge(config or {}, generation)


def embedding_rows(model_config: Json) -> int:
    """Return vocab_size of a config.json, of the text model if there are several; 0 if it is absent."""
    text_config = model_config.get("text_config")
    rows = (text_config if isinstance(text_config, dict) else model_config).get("vocab_size")
    return rows if isinstance(rows, int) else 0


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json; older folders have the special tokens in special_tokens_map.json."""
    config = read_object(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config and (folder / SPECIAL_TOKENS_MAP).is_file():
        config |= read_object(folder / SPECIAL_TOKENS_MAP)
    return config


def template_variables(tokenizer_config: Json) -> dict[str, str]:
    """Return name -> token of the special tokens that transformers passes to a chat template.

    Examples:
      >>> template_variables({"eos_token": {"content": "</s>"}, "extra_special_tokens": {"image_token": "<image>"}})
      {'eos_token': '</s>', 'image_token': '<image>'}
    """
    extra = tokenizer_config.get("extra_special_tokens")
    tokens = {**tokenizer_config, **(extra if isinstance(extra, dict) else {})}
    names = [name.removesuffix("_token") for name in tokens if name.endswith("_token")]
    return {f"{name}_token": token for name, token in named_tokens(tokens, names).items() if isinstance(token, str)}


def named_tokens(tokenizer_config: Json, names: Iterable[str]) -> dict[str, str]:
    """Return name -> token of the special tokens that a tokenizer_config.json has.

    Examples:
      >>> named_tokens({"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}, ("bos", "eos", "pad"))
      {'eos': '</s>', 'pad': '<pad>'}
    """
    tokens = {name: tokenizer_config.get(f"{name}_token") for name in names}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: token for name, token in tokens.items() if token is not None}


def id_of(model_config: Json, name: str) -> int:
    """Return an id of a config.json, the first if it is a list; -1 if it is absent.

    Examples:
      >>> id_of({"eos_token_id": [128001, 128009]}, "eos_token_id"), id_of({"eos_token_id": None}, "eos_token_id")
      (128001, -1)
    """
    value = model_config.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else -1


def language_tokens(
    tokenizer_config: Json, model_config: Json, ids: Mapping[str, int], source: str, target: str
) -> list[str]:
    """Return the tokens of the source and the target language; [] for a model without language tokens.

    Languages of the settings, `source` and `target`, replace those of the folder, unless they are "".
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
    default_target = generation_config.token_of(model_config, "forced_bos_token_id", tokens) or ""
    both = {"source": source or tokenizer_config.get("src_lang") or "", "target": target or default_target}
    for field, language in both.items():
        if language not in ids:
            raise KdError(
                f"tokenizer.{field}: expected a language token of the {kind} folder, got {language!r}. Name one, such "
                "as eng_Latn (NLLB) or en_XX (mBART)."
            )
    return list(both.values())


def renumber_added_tokens(tokenizer_config: Json, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return a tokenizer_config.json with new ids (old id -> new id) of its added tokens."""
    if "added_tokens_decoder" not in tokenizer_config:
        return dict(tokenizer_config)
    tokens = {int(old): token for old, token in tokenizer_config["added_tokens_decoder"].items()}
    return {**tokenizer_config, "added_tokens_decoder": {str(new_ids[i]): tokens[i] for i in tokens if i in new_ids}}
