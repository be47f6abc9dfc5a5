"""Short runs of the smoke experiment."""

from collections.abc import Sequence
from pathlib import Path

from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.resolve import resolve
from kd_jax.experiment import Experiment
from kd_jax.phases import cache, prepare, teacher


def smoke(root: Path, overrides: Sequence[str]) -> Experiment:
    """The smoke experiment on 120 examples, 60 tokens, two buckets and one device."""
    small = ["--source.examples", "120", "--tokenizer.vocab-size", "60", "--buckets", "12", "32", "--backend", "jit"]
    return resolve(str(root / "experiments/configs/smoke.py"), [*small, *overrides])


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


def kept(wanted, path: Path, texts: Sequence[str]):
    """A tokeniser as a run keeps it, from its settings."""
    path.mkdir(exist_ok=True)
    wanted.check()
    wanted.prepare(texts, path)
    return wanted.load(path)
