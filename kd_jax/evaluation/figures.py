"""The figures of one model, typed; evaluation/MODEL.json and report.json hold them as one flat object."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.artifacts import manifest
from kd_jax.errors import KdError

Json = Mapping[str, Any]
# A baseline's name: the references as the tokenizer writes them. It bounds every model, so it competes with none.
ROUND_TRIP = "round_trip"


@dataclasses.dataclass(frozen=True)
class MetricFigure:
    """One task metric of one model or baseline.

    Attributes:
      value: None where it needs likelihoods and there are none.
      interval: (low, high), 95%; None without a bootstrap.
      beam: the metric of the texts of the beam search; None where there are none.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    beam: float | None = None

    def of_model(self) -> float:
        """Return the value of a model's metric, which is never None."""
        assert self.value is not None
        return self.value


@dataclasses.dataclass(frozen=True)
class Closeness:
    """Means over the targets that count; None where the teacher's weights are not here.

    Attributes:
      cross_entropy: nats a token.
      calibration_error: expected calibration error, in [0, 1].
      kl_to_teacher: KL(teacher || student), nats a token.
      agreement: share of targets where both models have the same most likely token.
      acceptance: 1 - total variation, the rate at which the teacher accepts draft tokens of the student.
    """

    cross_entropy: float
    calibration_error: float
    kl_to_teacher: float | None = None
    agreement: float | None = None
    acceptance: float | None = None


@dataclasses.dataclass(frozen=True)
class CachedCloseness:
    """Closeness measured on the validation split from the teacher's top-k cache.

    `kl_to_teacher` may be too small by at most `kl_error`, and `acceptance` too large by at most `acceptance_error`.
    """

    cross_entropy: float
    calibration_error: float
    kl_to_teacher: float
    agreement: float
    acceptance: float
    kl_error: float
    acceptance_error: float


@dataclasses.dataclass(frozen=True)
class TrainingFigures:
    """Size of a model and cost of its training; None for int8 weights.

    Attributes:
      bytes: of the checkpoint; of the parameters where they are int8.
      loss_before_first_step: validation cross-entropy in nats a token.
      train_tokens_per_second: None also for a model that was not trained.
      seconds: wall-clock time of the training phase.
      sampling_seconds: of these, those in which the student wrote texts of its own; None if it wrote none.
    """

    parameters: int
    parameters_outside_embeddings: int
    bytes: int
    loss_before_first_step: float | None
    train_tokens_per_second: float | None
    seconds: float | None
    sampling_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class DecodingSpeed:
    """Medians of timed decoding, in batches and one prompt at a time ("single")."""

    decode_tokens_per_second: float
    decode_texts_per_second: float
    decode_tokens_per_second_single: float
    decode_texts_per_second_single: float


@dataclasses.dataclass(frozen=True)
class DraftingFigures:
    """A student as the teacher's draft in speculative decoding, one prompt at a time.

    Attributes:
      draft_tokens: drafted a round.
      draft_acceptance: accepted over drafted tokens.
      draft_tokens_per_second: written by the two together.
      draft_speedup: seconds of the teacher without drafts over seconds with them.
    """

    draft_tokens: int
    draft_acceptance: float
    draft_tokens_per_second: float
    draft_speedup: float


@dataclasses.dataclass(frozen=True)
class OwnTextFigures:
    """A model and the teacher on texts that the model draws from its own distribution, by token.

    Attributes:
      own_kl: KL(teacher || model), nats a token.
      own_reverse_kl: KL(model || teacher), nats a token.
      own_top_20: share of the teacher's 20 most likely tokens that are among the model's.
      own_length: tokens a text.
      own_cut: share of the texts that reach the maximum length without an end.
      own_distinct_2: share of different pairs of tokens within a text.
    """

    own_kl: float
    own_reverse_kl: float
    own_top_20: float
    own_length: float
    own_cut: float
    own_distinct_2: float


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """All figures of one model.

    Attributes:
      metrics: name of a task metric -> its figure.
      closeness: on the evaluated split.
      over_long: of its `examples`, those longer than the last bucket.
      offline: on the validation split, from the cache; None for the teacher and without such a cache.
      drafting: None for all but the leading student.
      own: on texts of its own; None where they are not measured, and for the teacher.
      warnings: degenerate texts, one line each; known to a report alone.
    """

    metrics: Mapping[str, MetricFigure]
    closeness: Closeness
    examples: int
    over_long: int
    training: TrainingFigures
    speed: DecodingSpeed
    offline: CachedCloseness | None = None
    drafting: DraftingFigures | None = None
    own: OwnTextFigures | None = None
    warnings: tuple[str, ...] = ()

    def value(self, metric: str) -> float:
        """Return a task metric's value."""
        return self.metrics[metric].of_model()

    def with_warnings(self, warnings: Iterable[str]) -> "ModelFigures":
        """Return the same figures with warnings."""
        return dataclasses.replace(self, warnings=tuple(warnings))

    def to_json(self) -> dict[str, Any]:
        """Return the flat object of evaluation/MODEL.json; `warnings` are left out."""
        flat = metrics_to_json(self.metrics) | dataclasses.asdict(self.closeness)
        flat |= {"examples": self.examples, "over_long": self.over_long}
        if self.offline:
            flat["offline"] = dataclasses.asdict(self.offline)
        flat |= dataclasses.asdict(self.training)
        if self.training.sampling_seconds is None:
            del flat["sampling_seconds"]
        if self.drafting:
            flat |= dataclasses.asdict(self.drafting)
        if self.own:
            flat |= dataclasses.asdict(self.own)
        return flat | dataclasses.asdict(self.speed)

    @classmethod
    def from_json(cls, flat: Json, metrics: Iterable[str], warnings: Iterable[str] = ()) -> "ModelFigures":
        """Return the inverse of `to_json`; raises KeyError for a missing figure, and ignores further keys."""
        return cls(
            metrics=metrics_from_json(flat, metrics),
            closeness=_select(Closeness, flat),
            examples=flat["examples"],
            over_long=flat["over_long"],
            offline=_select(CachedCloseness, flat["offline"]) if "offline" in flat else None,
            training=_select(TrainingFigures, {"sampling_seconds": None, **flat}),
            speed=_select(DecodingSpeed, flat),
            drafting=_select(DraftingFigures, flat) if "draft_tokens" in flat else None,
            own=_select(OwnTextFigures, flat) if "own_kl" in flat else None,
            warnings=tuple(warnings),
        )


def read_model_figures(path: Path, metrics: Iterable[str]) -> ModelFigures:
    """Read evaluation/MODEL.json."""
    with expect_figures(path, "evaluate --force"):
        return ModelFigures.from_json(manifest.read_json(path), metrics)


def read_baselines(path: Path, metrics: Sequence[str]) -> dict[str, dict[str, MetricFigure]]:
    """Read evaluation/baselines.json as name -> metric -> figure."""
    with expect_figures(path, "evaluate --force"):
        return {name: metrics_from_json(flat, metrics) for name, flat in manifest.read_json(path).items()}


@contextlib.contextmanager
def expect_figures(path: Path, command: str) -> Iterator[None]:
    """Turn a KeyError into a KdError that names the file, the figure, and the command to run again."""
    try:
        yield
    except KeyError as error:
        raise KdError(f"{path}: expected the figure {error.args[0]!r}, got none. Run `{command}` again.") from error


def metrics_to_json(metrics: Mapping[str, MetricFigure]) -> dict[str, Any]:
    """Return "NAME" and "NAME_ci" for each metric, and "NAME_beam" where there is one.

    Examples:
      >>> metrics_to_json({"bleu": MetricFigure(20.0, None, beam=21.0)})
      {'bleu': 20.0, 'bleu_ci': None, 'bleu_beam': 21.0}
    """
    flat = {}
    for name, figure in metrics.items():
        flat |= {name: figure.value, f"{name}_ci": figure.interval}
    return flat | {f"{name}_beam": figure.beam for name, figure in metrics.items() if figure.beam is not None}


def metrics_from_json(flat: Json, metrics: Iterable[str]) -> dict[str, MetricFigure]:
    """Return the inverse of `metrics_to_json`; raises KeyError for a metric that is missing."""
    figures = {}
    for name in metrics:
        interval = flat[f"{name}_ci"] and tuple(flat[f"{name}_ci"])  # JSON has lists
        figures[name] = MetricFigure(flat[name], interval, flat.get(f"{name}_beam"))
    return figures


def _select(kind: Any, flat: Json) -> Any:
    """Return a dataclass of those entries of `flat` that are its fields."""
    return kind(**{field.name: flat[field.name] for field in dataclasses.fields(kind)})
