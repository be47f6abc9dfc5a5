"""Short runs of the smoke experiment."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax import Files
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.overrides import apply_overrides
from kd_jax.experiment import Experiment
from kd_jax.phases import cache, prepare, teacher


def smoke(root: Path, overrides: Sequence[str]) -> Experiment:
    """The smoke experiment on 120 examples, 60 tokens, two buckets and one device."""
    small = ["--source.examples", "120", "--tokenizer.vocab-size", "60", "--buckets", "12", "32", "--backend", "jit"]
    return apply_overrides(str(root / "experiments/configs/smoke.py"), [*small, *overrides])


def taught(experiment: Experiment, path: Path) -> Workdir:
    """A run as far as the teacher's cache."""
    workdir = Workdir(path)
    for phase in (prepare, teacher, cache):
        phase.run(experiment, workdir)
    return workdir


def beside(workdir: Workdir, path: Path, *names: str) -> Workdir:
    """A run of its own on some of another's folders."""
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).symlink_to(workdir.path / name)
    return Workdir(path)


def corpus(path: Path, count: int) -> Files:
    """That many pairs in a file of JSON lines."""
    words = np.random.default_rng(0).integers(0, 1000, (count, 8))
    with open(path, "w") as file:
        for i, row in enumerate(words.tolist()):
            file.write(
                json.dumps({"en": f"w{i} " + " ".join(map(str, row)), "fr": " ".join(map(str, row[::-1]))}) + "\n"
            )
    return Files(train=(str(path),))


def digests(folder: Path) -> dict[str, str]:
    """Of every file but those that say when and how fast."""
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    return {name: hashlib.blake2b((folder / name).read_bytes()).hexdigest() for name in names}
