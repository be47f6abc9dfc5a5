"""Text out of the TensorFlow Datasets catalogue, without TensorFlow: find, prepare, read."""

import contextlib
import difflib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.extractor import ExtractError
from tensorflow_datasets.core.download.util import DownloadError

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.runtime.file_lock import file_lock
from kd_jax.sources.rows import Rows
from kd_jax.sources.text_files import is_blank

# TFDS registers its older builders by importing these folders in a fixed order, and stops at the first that
# needs TensorFlow, before it comes to the text.
TEXT_FOLDERS = ("question_answering", "summarization", "text", "text_simplification", "translate")
NEAREST = 20
ELSEWHERE = "prepare it where it can be, with `tfds build --file_format=array_record`, and name that source.data_dir"


def builder_of(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The catalogue's builder of `dataset`; nothing is downloaded.

    Args:
      dataset: "name", "name/config" or "name/config:version".
      data_dir: where datasets are prepared; "" for TFDS's own.

    Raises:
      KdError: if there is no such dataset, configuration or version, naming those nearest.
    """
    for folder in TEXT_FOLDERS:
        importlib.import_module(f"tensorflow_datasets.{folder}")
    folder = Path(data_dir).expanduser() if data_dir else None
    try:
        return tfds.builder(dataset, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        names = tfds.list_builders(with_community_datasets=False)
        raise KdError(
            f"source.dataset: no {dataset!r} in the TFDS catalogue; the nearest are {_nearest(dataset, names)}"
        ) from error
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError, OSError) as error:
        name, _, config = dataset.partition(":")[0].partition("/")
        configs = _configs(name)
        if config and config not in configs:
            raise KdError(
                f"source.dataset: {name} has no configuration {config!r}; it has {_nearest(config, configs)}"
            ) from error
        reason = str(error).rpartition('}": ')[2].strip().partition("\n")[0]  # without TFDS's list of arguments
        raise KdError(
            f"source.dataset: {dataset!r}: {reason}; wanted NAME/CONFIGURATION, and a source.data_dir of ArrayRecord"
        ) from error


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Downloads the dataset and writes it as ArrayRecord, unless that is done; one process at a time.

    Raises:
      KdError: if the network, a file that must be fetched by hand, or a library is lacking.
    """
    name = f"source.dataset: {builder.info.full_name}"
    folder = Path(builder.data_dir)
    if folder.exists():
        return
    tfds.disable_progress_bar()
    try:
        with file_lock(folder.with_name(f".{folder.name}.lock"), builder.info.full_name):
            builder.download_and_prepare()
            builder.info.read_from_directory(folder)  # another process may have written it
    except ImportError as error:
        raise KdError(f"{name} cannot be prepared here: {_last_line(error)}; install it, or {ELSEWHERE}") from error
    except AssertionError as error:  # TFDS's own words say what to fetch by hand, and where to put it
        raise KdError(f"{name} cannot be prepared: {_one_line(error)}") from error
    except (OSError, DownloadError, NonMatchingChecksumError, ExtractError) as error:
        raise KdError(
            f"{name} cannot be fetched: {_one_line(error)}; check network and disk, or {ELSEWHERE}"
        ) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise KdError(f"{name} cannot be prepared: {_one_line(error)}; take another, or {ELSEWHERE}") from error


def text_paths(features: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Paths of all features that are one text each, such as ["id", "translation/de", "translation/en"]."""
    paths = []
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            paths += text_paths(feature, f"{prefix}{name}/")
        elif feature.shape == () and feature.np_dtype == np.object_:
            paths.append(prefix + name)
    return paths


def check_fields(builder: tfds.core.DatasetBuilder, fields: Mapping[str, str]) -> None:
    """Refuses fields that are not one text each, by the dataset's declaration alone.

    Args:
      fields: our field -> the path of the dataset's.

    Raises:
      KdError: names the field, what it is, and the fields that are text.
    """
    features, paths = builder.info.features, text_paths(builder.info.features)
    for ours, path in fields.items():
        if path not in paths:
            raise KdError(
                f"source.fields.{ours}: {path!r} of {builder.info.full_name} is {_kind(features, path)}; "
                f"wanted one of its texts: {', '.join(paths) or 'it has none'}"
            )


class TfdsRows(Rows):
    """The examples of a prepared split, in the order of its files."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, fields: Mapping[str, str]):
        """Args: split: in TFDS's slicing syntax, such as "train[:10%]"; fields: our field -> the path of the dataset's.

        Raises:
          KdError: if there is no such split, naming those there are.
        """
        name = builder.info.full_name
        self.name, self._builder, self._split, self._fields = f"{name}, {split}", builder, split, dict(fields)
        try:
            self._count = builder.info.splits[split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            there = ", ".join(builder.info.splits)
            raise KdError(
                f"source: {name} has no split {split!r}; it has {there}, also in slices: train[:10%]"
            ) from error

    @functools.cached_property
    def _source(self) -> Any:
        return self._builder.as_data_source(split=self._split)

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[Any, ...]:
        return _tfds_rows, (str(self._builder.data_dir), self._split, self._fields)

    def read(self, numbers_N: np.ndarray) -> list[dict[str, str]]:
        """As Rows.read."""
        rows = self._source.__getitems__(numbers_N.tolist()) if len(numbers_N) else []
        return [{ours: _text_at(row, path.split("/")) for ours, path in self._fields.items()} for row in rows]


def _tfds_rows(data_dir: str, split: str, fields: Mapping[str, str]) -> TfdsRows:
    return TfdsRows(tfds.builder_from_directory(data_dir), split, fields)


@contextlib.contextmanager
def whole(rows: TfdsRows) -> Iterator[Callable[[Mapping[str, str]], bool]]:
    """Whether an example has no empty text; how many of those it was asked of have one is said at the end."""
    empty = 0

    def wanted(row: Mapping[str, str]) -> bool:
        nonlocal empty
        blank = any(map(is_blank, row.values()))
        empty += blank
        return not blank

    yield wanted
    if empty:
        progress.log(f"data: {rows.name}: examples left out for an empty text: {empty:,}")


def _text_at(row: Mapping[str, Any], path: Sequence[str]) -> str:
    for name in path:
        row = row[name]
    return row.decode()


def _kind(features: Mapping[str, Any], path: str) -> str:
    """What stands at a path, in TFDS's words: "Translation", "Sequence(Text(...))", "ClassLabel(...)"."""
    for name in path.split("/"):
        if not isinstance(features, tfds.features.FeaturesDict):
            break
        if name not in features:
            return "no field"
        features = features[name]
    return repr(features).splitlines()[0].rstrip("({")


def _configs(name: str) -> list[str]:
    """The dataset's configurations; none for a name that is no dataset's."""
    try:
        return list(tfds.builder_cls(name).builder_configs)
    except (ValueError, ImportError):
        return []


def _nearest(name: str, names: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, n=NEAREST, cutoff=0)) or "none"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _last_line(error: Exception) -> str:
    """TFDS puts the example that it was at before the reason."""
    return str(error).strip().splitlines()[-1]
