"""The models under evaluation, and their compiled programs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.decoding import text
from kd_jax.errors import KdError
from kd_jax.evaluation.closeness import compare_cached_step, compare_step, negative_log_likelihood, student_metrics_step
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture, Model
from kd_jax.models.int8 import Int8, quantize
from kd_jax.runtime.devices import Devices
from kd_jax.signals.topk import TopK
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.training.model import load_trained
from kd_jax.types import Params


class Candidate(NamedTuple):
    """The teacher, a student, or one of these with int8 weights (`name` is then unlike `trained_name`).

    The parameters are those of the best step, on the host.
    """

    name: str
    trained_name: str
    architecture: Architecture
    params: Params

    def with_int8_weights(self, name: str) -> "Candidate":
        """Return this model with int8 weights, under another name."""
        return Candidate(name, self.trained_name, Int8(self.architecture), quantize(self.params))


def load_candidates(experiment: ResolvedExperiment, workdir: Workdir) -> list[Candidate]:
    """Load all trained models of a run, the teacher first, then those with int8 weights."""
    names, in_int8 = trained_models(experiment, workdir), experiment.evaluation.in_int8
    for source in in_int8.values():
        if source not in names:
            raise KdError(f"evaluation.int8: expected models trained in this workdir, got {source!r}. Remove it.")
    models = {}
    for name in names:
        params = load_trained(experiment, workdir, name)[1]
        models[name] = Candidate(name, name, experiment.recipes[name].model, params)
    return [*models.values(), *(models[source].with_int8_weights(name) for name, source in in_int8.items())]


def trained_models(experiment: ResolvedExperiment, workdir: Workdir) -> list[str]:
    """Return the names of the models trained in this workdir: all but an imported teacher."""
    return [name for name in experiment.recipes if name != TEACHER or not workdir.teacher_is_imported]


class Programs:
    """Compiled functions, one for each architecture; models of one architecture share them.

    Attributes:
      compare: (architecture, devices) -> `compare_step`.
      student_metrics: (architecture, devices) -> `student_metrics_step`.
      compare_cached: (architecture, signal, devices) -> `compare_cached_step`.
      negative_log_likelihood: (architecture, devices) -> the function of that name.
      write: (architecture, way, devices) -> `decoding.text.generate`.
    """

    def __init__(self, decoding: Decoding, teacher: Model, tokenizer: Tokenizer):
        """Compile nothing yet; students are compared with the teacher."""
        self._decoding, self._teacher, self._tokenizer = decoding, teacher, tokenizer
        self.compare = functools.cache(self._compare)
        self.student_metrics = functools.cache(self._student_metrics)
        self.compare_cached = functools.cache(self._compare_cached)
        self.negative_log_likelihood = functools.cache(self._negative_log_likelihood)
        self.write = functools.cache(self._write)

    def replicate_params(self, candidate: Candidate, devices: Devices) -> Params:
        """Return a model's parameters on the devices."""
        return devices.replicate(candidate.params, self._build(candidate.architecture).axes(candidate.params))

    def _build(self, architecture: Architecture) -> Model:
        return architecture.build(self._tokenizer.vocab_size)

    def _compare(self, architecture: Architecture, devices: Devices) -> Callable:
        student = self._build(architecture)
        return devices.compile_sums(functools.partial(compare_step, teacher=self._teacher, student=student))

    def _student_metrics(self, architecture: Architecture, devices: Devices) -> Callable:
        return devices.compile_sums(functools.partial(student_metrics_step, student=self._build(architecture)))

    def _compare_cached(self, architecture: Architecture, signal: TopK, devices: Devices) -> Callable:
        student = self._build(architecture)
        return devices.compile_sums(functools.partial(compare_cached_step, student=student, signal=signal))

    def _negative_log_likelihood(self, architecture: Architecture, devices: Devices) -> Callable:
        return devices.compile(functools.partial(negative_log_likelihood, model=self._build(architecture)))

    def _write(self, architecture: Architecture, way: str, devices: Devices) -> Callable:
        tokenizer = self._tokenizer
        return text.compile_generate(
            architecture,
            tokenizer.vocab_size,
            way,
            self._decoding,
            text.TextTokens.of(tokenizer),
            devices,
        )
