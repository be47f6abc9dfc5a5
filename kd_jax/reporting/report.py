"""The figures of a run, typed: report.json as Python."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.artifacts import manifest
from kd_jax.evaluation.figures import (
    Json,
    MetricFigure,
    ModelFigures,
    expect_figures,
    metrics_from_json,
    metrics_to_json,
)
from kd_jax.experiment import Comparison
from kd_jax.reporting.paired import Difference
from kd_jax.tasks.metrics import Metric


@dataclasses.dataclass(frozen=True)
class MetricInfo:
    """How a task's metric is shown."""

    name: str
    label: str
    higher_is_better: bool | None
    digits: int
    signature: str = ""

    @classmethod
    def of(cls, metric: Metric) -> "MetricInfo":
        """Return the part of a task's metric that reports show."""
        return cls(metric.name, metric.label, metric.higher_is_better, metric.digits, metric.signature)


@dataclasses.dataclass(frozen=True)
class CacheFigures:
    """Size and cost of a signal's cache; `other` are further outputs of the phase."""

    target_tokens: int
    bytes: int
    bytes_per_target_token: float
    seconds: float
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the phase's outputs and its seconds as one object."""
        figures = dataclasses.asdict(self)
        return figures.pop("other") | figures

    @classmethod
    def from_json(cls, data: Json) -> "CacheFigures":
        """Return the inverse of `to_json`; raises KeyError for a missing figure."""
        own = {name: data[name] for name in ("target_tokens", "bytes", "bytes_per_target_token", "seconds")}
        return cls(**own, other={name: value for name, value in data.items() if name not in own})


@dataclasses.dataclass(frozen=True)
class PseudoTargetFigures:
    """Size and cost of a folder with texts of the teacher: the hypotheses of a split, or targets chosen from them.

    Attributes:
      examples: records in the folder.
      bytes: of its files, without the caches of signals below it.
      seconds: wall-clock time.
    """

    examples: int
    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Int8Comparison:
    """A model with int8 weights against the same model `of` with float weights, by the headline metric."""

    of: str
    difference: Difference


@dataclasses.dataclass(frozen=True)
class Report:
    """All figures of a run.

    Attributes:
      metrics: of the task, the headline first.
      comparison: the students that the headline is about; None for the best student.
      models: name -> figures, the teacher first; int8 models last. Without an imported teacher.
      baselines: name -> metric -> figure of a text that needs no model.
      differences: other trained model -> leading student minus that model, of the headline metric.
      int8: name of a model with int8 weights -> its comparison.
      teacher_gain: the teacher minus the comparison's baseline, of the headline metric; None without one of them.
      gap_recovered: share of the gap between baseline and teacher that the distilled student closes; None where it
        would say nothing (`verdict.gap_is_meaningful`).
      caches: signal, or targets/signal -> size and cost of its cache.
      pseudo_targets: folder in pseudo/ -> size and cost.
      teacher_signals: student -> what its training reads of the teacher: names of `pseudo_targets` and `caches`, then
        classes of signals that the teacher computes while the student trains.
      wall_seconds: phase -> seconds.
      counts: split -> number of examples.
      dropped_as_seen_in_training: split -> number of held-out examples removed because training has their source.
    """

    name: str
    task: str
    dataset: str
    seed: int
    metrics: tuple[MetricInfo, ...]
    comparison: Comparison | None
    models: Mapping[str, ModelFigures]
    baselines: Mapping[str, Mapping[str, MetricFigure]]
    differences: Mapping[str, Difference]
    int8: Mapping[str, Int8Comparison]
    teacher_gain: Difference | None
    gap_recovered: float | None
    caches: Mapping[str, CacheFigures]
    pseudo_targets: Mapping[str, PseudoTargetFigures]
    teacher_signals: Mapping[str, tuple[str, ...]]
    wall_seconds: Mapping[str, float]
    counts: Mapping[str, int]
    dropped_as_seen_in_training: Mapping[str, int]
    versions: Mapping[str, str]

    @property
    def headline(self) -> MetricInfo:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def trained(self) -> dict[str, ModelFigures]:
        """The models without those with int8 weights."""
        return {name: model for name, model in self.models.items() if name not in self.int8}

    @property
    def headline_values(self) -> dict[str, float]:
        """Trained model -> its headline metric."""
        return {name: model.value(self.headline.name) for name, model in self.trained.items()}

    def to_json(self) -> dict[str, Any]:
        """Return report.json as a dictionary."""
        models = {name: model.to_json() | {"warnings": model.warnings} for name, model in self.models.items()}
        return dataclasses.asdict(self) | {
            "headline": dataclasses.asdict(self.headline),
            "models": models,
            "baselines": {name: metrics_to_json(figures) for name, figures in self.baselines.items()},
            "caches": {name: cache.to_json() for name, cache in self.caches.items()},
        }

    @classmethod
    def from_json(cls, data: Json) -> "Report":
        """Return the inverse of `to_json`; raises KeyError for a missing figure."""
        names, comparison = [metric["name"] for metric in data["metrics"]], data["comparison"]
        return cls(
            name=data["name"],
            task=data["task"],
            dataset=data["dataset"],
            seed=data["seed"],
            metrics=tuple(MetricInfo(**metric) for metric in data["metrics"]),
            comparison=comparison and Comparison(**comparison | {"controls": tuple(comparison["controls"])}),
            models={
                name: ModelFigures.from_json(model, names, model["warnings"]) for name, model in data["models"].items()
            },
            baselines={name: metrics_from_json(figures, names) for name, figures in data["baselines"].items()},
            differences={name: Difference.from_json(one) for name, one in data["differences"].items()},
            int8={
                name: Int8Comparison(one["of"], Difference.from_json(one["difference"]))
                for name, one in data["int8"].items()
            },
            teacher_gain=data["teacher_gain"] and Difference.from_json(data["teacher_gain"]),
            gap_recovered=data["gap_recovered"],
            caches={name: CacheFigures.from_json(cache) for name, cache in data["caches"].items()},
            pseudo_targets={name: PseudoTargetFigures(**one) for name, one in data["pseudo_targets"].items()},
            teacher_signals={name: tuple(signals) for name, signals in data["teacher_signals"].items()},
            wall_seconds=data["wall_seconds"],
            counts=data["counts"],
            dropped_as_seen_in_training=data["dropped_as_seen_in_training"],
            versions=data["versions"],
        )


def read_report(path: Path) -> Report:
    """Read report.json."""
    with expect_figures(path, "report"):
        return Report.from_json(manifest.read_json(path))
