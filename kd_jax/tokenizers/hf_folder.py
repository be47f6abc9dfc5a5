"""Files of a model folder in Hugging Face's layout, and the settings of tokenizers that read it."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from kd_jax.artifacts import files, manifest
from kd_jax.errors import KdError

Json = Mapping[str, Any]
Special = TypeVar("Special")
TOKENIZER_CONFIG, MODEL_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "config.json", "generation_config.json"
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
            if not (Path(self.folder) / name).exists():
                raise KdError(
                    f"tokenizer.folder: expected {self.kind} with {', '.join(self.required)}, got {self.folder!r} "
                    f"without {name}. Copy the missing file, or name another local folder."
                )

    def input_files(self) -> tuple[Path, ...]:
        """Return the folder's files that decide the tokenizer."""
        paths = (Path(self.folder) / name for name in (*self.required, *self.optional))
        return tuple(path for path in paths if path.exists())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of one of the folder's files."""
        return manifest.read_json(Path(self.folder) / name)


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
    """Return the ids that the folder's model never generates; suppressed sequences of several ids are ignored."""
    single = [ids[0] for ids in model_config.get("bad_words_ids", ()) if len(ids) == 1]
    return sorted({*single, *model_config.get("suppress_tokens", ())})


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
    """Return a tokenizer_config.json with new ids (old id -> new id) of its added tokens."""
    if "added_tokens_decoder" not in tokenizer_config:
        return dict(tokenizer_config)
    tokens = {int(old): token for old, token in tokenizer_config["added_tokens_decoder"].items()}
    return {**tokenizer_config, "added_tokens_decoder": {str(new_ids[i]): tokens[i] for i in tokens if i in new_ids}}
