"""What is measured: the teacher and its students, some with int8 weights too, and their compiled programs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.decoding import text
from kd_jax.errors import KdError
from kd_jax.evaluation.closeness import compare_cached_step, compare_step, likelihood, student_metrics_step
from kd_jax.experiment import Experiment
from kd_jax.models.base import Architecture, Model
from kd_jax.models.int8 import Int8, quantize
from kd_jax.runtime.devices import Devices
from kd_jax.signals.topk import TopK
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.training.model import load_trained
from kd_jax.types import Params


class Candidate(NamedTuple):
    """One model.

    Attributes:
      name: "teacher", or the student's; another where its weights are int8.
      trained: the model that was trained: its name, or that of the one whose weights it has in int8.
      architecture: its network.
      params: its best parameters, on the host.
    """

    name: str
    trained: str
    architecture: Architecture
    params: Params

    def in_int8(self, name: str) -> "Candidate":
        """The same model with int8 weights, under another name."""
        return Candidate(name, self.trained, Int8(self.architecture), quantize(self.params))


def load_candidates(experiment: Experiment, workdir: Workdir) -> list[Candidate]:
    """All models of a run, the teacher first; without it where it is elsewhere. Then those with int8 weights.

    Raises:
      KdError: if the weights of a teacher that is elsewhere are asked for in int8, or a model is not trained yet.
    """
    names, in_int8 = trained_models(experiment, workdir), experiment.evaluation.in_int8
    for of in in_int8.values():
        if of not in names:
            raise KdError(f"evaluation.int8: the weights of {of!r} are elsewhere; leave it out")
    models = {
        name: Candidate(name, name, experiment.recipes[name].model, load_trained(experiment, workdir, name)[1])
        for name in names
    }
    return [*models.values(), *(models[of].in_int8(name) for name, of in in_int8.items())]


def trained_models(experiment: Experiment, workdir: Workdir) -> list[str]:
    """Names of the models that were trained here: all, but for a teacher that is elsewhere."""
    return [name for name in experiment.recipes if name != TEACHER or not workdir.teacher_is_imported]


class Programs:
    """Compiled functions, one for each shape of network: models of one shape share them."""

    def __init__(self, decoding: Decoding, teacher: Model, tokenizer: Tokenizer):
        self._decoding, self._teacher, self._vocab_size = decoding, teacher, tokenizer.vocab_size
        self._ends = {"eos": tokenizer.eos, "suppress_tokens": tokenizer.suppress_tokens}
        self.compare = functools.cache(self._compare)
        self.student_metrics = functools.cache(self._student_metrics)
        self.compare_cached = functools.cache(self._compare_cached)
        self.likelihood = functools.cache(self._likelihood)
        self.write = functools.cache(self._write)

    def put(self, candidate: Candidate, devices: Devices) -> Params:
        """A model's parameters on the devices."""
        return devices.replicate(
            candidate.params, candidate.architecture.build(self._vocab_size).axes(candidate.params)
        )

    def _compare(self, architecture: Architecture, devices: Devices) -> Callable:
        student = architecture.build(self._vocab_size)
        return devices.compile_sums(functools.partial(compare_step, teacher=self._teacher, student=student))

    def _student_metrics(self, architecture: Architecture, devices: Devices) -> Callable:
        student = architecture.build(self._vocab_size)
        return devices.compile_sums(functools.partial(student_metrics_step, student=student))

    def _compare_cached(self, architecture: Architecture, signal: TopK, devices: Devices) -> Callable:
        student = architecture.build(self._vocab_size)
        return devices.compile_sums(functools.partial(compare_cached_step, student=student, signal=signal))

    def _likelihood(self, architecture: Architecture, devices: Devices) -> Callable:
        return devices.compile(functools.partial(likelihood, model=architecture.build(self._vocab_size)))

    def _write(self, architecture: Architecture, way: str, devices: Devices) -> Callable:
        parts = {"model": architecture.build(self._vocab_size), "architecture": architecture, "way": way}
        return devices.compile(functools.partial(text.write, **parts, decoding=self._decoding, **self._ends))
