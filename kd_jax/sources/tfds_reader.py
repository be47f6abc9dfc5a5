"""Datasets of the TensorFlow Datasets catalogue, without TensorFlow: find, prepare, read."""

import contextlib
import difflib
import functools
import importlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

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
from kd_jax.types import Example

# TFDS registers its older builders by importing folders in a fixed order. It stops at the first that needs TensorFlow,
# before those with text.
TEXT_FOLDERS = ("question_answering", "summarization", "text", "text_simplification", "translate")
REMEDY = "or prepare it elsewhere with `tfds build --file_format=array_record`, and set source.data_dir"


def find_builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Return the builder of a dataset "name/config:version" of the catalogue; download nothing."""
    for folder in TEXT_FOLDERS:
        importlib.import_module(f"tensorflow_datasets.{folder}")
    folder = Path(data_dir).expanduser() if data_dir else None
    try:
        return tfds.builder(dataset, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        names = _similar(dataset, tfds.list_builders(with_community_datasets=False))
        raise KdError(
            f"source.dataset: expected a dataset of the TFDS catalogue, got {dataset!r}. Similar names: {names}."
        ) from error
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError, OSError) as error:
        name, _, config = dataset.partition(":")[0].partition("/")
        configs = []
        with contextlib.suppress(ValueError, ImportError):  # an unknown dataset has none
            configs = list(tfds.builder_cls(name).builder_configs)
        if config and config not in configs:
            names = _similar(config, configs)
            raise KdError(
                f"source.dataset: expected a configuration of {name}, got {config!r}. It has {names}."
            ) from error
        reason = str(error).rpartition('}": ')[2].strip().partition("\n")[0]  # without TFDS's list of arguments
        raise KdError(
            "source.dataset: expected NAME/CONFIGURATION, prepared as ArrayRecord if it is in source.data_dir, got "
            f"{dataset!r}. TFDS: {reason}"
        ) from error


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Download the dataset and write it as ArrayRecord, unless that is done; one process at a time."""
    name = f"source.dataset: {builder.info.full_name}"
    folder = Path(builder.data_dir)
    if folder.exists():
        return
    tfds.disable_progress_bar()
    try:
        with file_lock(folder.with_name(f".{folder.name}.lock"), builder.info.full_name):
            builder.download_and_prepare()
            builder.info.read_from_directory(folder)  # another process may have prepared it
    except ImportError as error:
        reason = str(error).strip().splitlines()[-1]  # TFDS prints the current example before it
        raise KdError(f"{name} cannot be prepared: {reason}. Install the library, {REMEDY}.") from error
    except AssertionError as error:  # TFDS says which file to download by hand, and where to put it
        raise KdError(f"{name} cannot be prepared: {_one_line(error)}") from error
    except (OSError, DownloadError, NonMatchingChecksumError, ExtractError) as error:
        reason = _one_line(error)
        raise KdError(f"{name} cannot be downloaded: {reason}. Check the network and the disk, {REMEDY}.") from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise KdError(f"{name} cannot be prepared: {_one_line(error)}. Use another dataset, {REMEDY}.") from error


def text_paths(features: tfds.features.FeaturesDict, prefix: str = "") -> list[str]:
    """Return the paths of all text features, such as ["id", "translation/de", "translation/en"]."""
    paths = []
    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            paths += text_paths(feature, f"{prefix}{name}/")
        elif feature.shape == () and feature.np_dtype == np.object_:
            paths.append(prefix + name)
    return paths


def check_fields(builder: tfds.core.DatasetBuilder, fields: Mapping[str, str]) -> None:
    """Raise KdError if one of the paths is not a text feature of the dataset; read the dataset's declaration only."""
    features = cast(tfds.features.FeaturesDict, builder.info.features)
    paths = text_paths(features)
    for field, path in fields.items():
        if path not in paths:
            names = ", ".join(paths) or "none"
            raise KdError(
                f"source.fields.{field}: expected a text of {builder.info.full_name} ({names}), got {path!r}, "
                f"{_describe_feature(features, path)}. Name one of the texts."
            )


class TfdsRows(Rows):
    """The examples of a prepared split, in the order of its files."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, fields: Mapping[str, str]):
        """Find the split, in TFDS's slicing syntax; `fields`: our field -> path of the dataset's feature."""
        dataset = builder.info.full_name
        self.name, self._builder, self._split, self._fields = f"{dataset}, {split}", builder, split, dict(fields)
        try:
            self._count = builder.info.splits[split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            names = ", ".join(builder.info.splits)
            raise KdError(
                f"source: expected a split of {dataset} ({names}), got {split!r}. Slices are possible: train[:10%]."
            ) from error

    @functools.cached_property
    def _source(self) -> Any:
        # TFDS's decorator hides the parameters.
        return self._builder.as_data_source(split=self._split)  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._count

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the location of the examples."""
        return _tfds_rows, (str(self._builder.data_dir), self._split, self._fields)

    def read(self, numbers_N: np.ndarray) -> list[Example]:
        """Return the examples with these numbers."""
        rows = self._source.__getitems__(numbers_N.tolist()) if len(numbers_N) else []
        paths = {field: path.split("/") for field, path in self._fields.items()}
        return [
            {field: functools.reduce(operator.getitem, path, row).decode() for field, path in paths.items()}
            for row in rows
        ]


def _tfds_rows(data_dir: str, split: str, fields: Mapping[str, str]) -> TfdsRows:
    return TfdsRows(tfds.builder_from_directory(data_dir), split, fields)


@contextlib.contextmanager
def without_blanks(rows: TfdsRows) -> Iterator[Callable[[Example], bool]]:
    """Give a filter that accepts examples without empty texts; log how many it refused."""
    refused = 0

    def keep(row: Example) -> bool:
        nonlocal refused
        blank = any(map(is_blank, row.values()))
        refused += blank
        return not blank

    yield keep
    if refused:
        progress.log(f"data: {rows.name}: {refused:,} examples with an empty text removed")


def _describe_feature(features: tfds.features.FeaturesDict, path: str) -> str:
    """Return the feature at a path as TFDS prints it: "Translation", "Sequence(Text(...))", "ClassLabel(...)"."""
    feature: Any = features
    for name in path.split("/"):
        if not isinstance(feature, tfds.features.FeaturesDict):
            break
        if name not in feature:
            return "no field"
        feature = feature[name]
    return repr(feature).splitlines()[0].rstrip("({")


def _similar(name: str, names: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, n=20, cutoff=0)) or "none"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
