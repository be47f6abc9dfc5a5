"""A trained model of a run, on this host's devices, and the teacher."""

import functools
from typing import Any

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.layouts import Layout
from kd_jax.batches.targets import TrainTargets
from kd_jax.experiment import ResolvedExperiment
from kd_jax.provenance import input_fields
from kd_jax.runtime import hosts
from kd_jax.runtime.backends import local_devices
from kd_jax.tokenizers import base as tokenizers
from kd_jax.types import Params


class TrainedModel:
    """A trained model of a run, on this host's devices; its parameters are loaded on first use.

    Attributes:
      name: of the model in `experiment.recipes`.
      architecture: hyper-parameters of its network.
      data: the outputs of the phase `prepare`.
    """

    def __init__(self, experiment: ResolvedExperiment, workdir: Workdir, name: str):
        """Build the network of the model."""
        self.experiment, self.workdir, self.name = experiment, workdir, name
        self.data = workdir.data.outputs()
        self.vocab_size: int = self.data["vocab_size"]
        self.devices = local_devices(experiment.backend, experiment.mesh)
        self.architecture = experiment.recipes[name].model
        self.model = self.architecture.build(self.vocab_size)

    @property
    def layout(self) -> Layout:
        """How examples become rows of the network."""
        return self.architecture.layout(self.tokenizer.start, self.tokenizer.forced_prefix)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The run's tokeniser, loaded on first use."""
        return tokenizers.load(self.experiment.tokenizer, self.workdir.data)

    @functools.cached_property
    def params(self) -> Params:
        """The parameters of the best step, loaded onto the devices on first use."""
        params = checkpoint.load_params(self.workdir.model(self.name), self.model.init)
        return self.devices.replicate(params, self.model.axes(params))


class Teacher(TrainedModel):
    """The trained teacher of a run, whose signals and texts are written.

    Attributes:
      writer: (index, count) of the process among those that write records.
    """

    def __init__(self, experiment: ResolvedExperiment, workdir: Workdir, writer: tuple[int, int] | None = None):
        """Build the network; `writer` is as in `store.write`, None for this host among all hosts."""
        super().__init__(experiment, workdir, TEACHER)
        self.writer = writer or hosts.process()

    def load(self) -> None:
        """Load the parameters onto the devices."""
        _ = self.params

    def manifest_inputs(self, targets: TrainTargets, split: str, data: Folder | None = None) -> dict[str, Any]:
        """Return the digests of all that the teacher's records of a split depend on; `data` as of `write_signal`."""
        outputs = (data or self.workdir.split(targets.name)).outputs()
        return {
            "consumed.teacher": self.workdir.model(TEACHER).outputs()["digest"],
            "consumed.tokenizer": self.data["tokenizer"],
            "consumed.split": outputs["digest"] if data or targets.pseudo else outputs["splits"][split],
            "split": split,
            "buckets": input_fields(self.experiment)["buckets"],
        }
