"""Short runs of the smoke experiment."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax import Files
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.overrides import apply_overrides
from kd_jax.experiment import Experiment
from kd_jax.phases import cache, prepare, teacher


def smoke(root: Path, overrides: Sequence[str]) -> Experiment:
    """Return the smoke experiment on 120 examples, 60 tokens, two buckets and one device."""
    small = ["--source.examples", "120", "--tokenizer.vocab-size", "60", "--buckets", "12", "32", "--backend", "jit"]
    return apply_overrides(str(root / "experiments/configs/smoke.py"), [*small, *overrides])


def run_until_cache(experiment: Experiment, path: Path) -> Workdir:
    """Run the phases up to the teacher's cache; return the workdir."""
    workdir = Workdir(path)
    for phase in (prepare, teacher, cache):
        phase.run(experiment, workdir)
    return workdir


def linked_run(workdir: Workdir, path: Path, *names: str) -> Workdir:
    """Return a new workdir with links to some folders of another one."""
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).symlink_to(workdir.path / name)
    return Workdir(path)


def copied_run(workdir: Workdir, path: Path, *names: str) -> Workdir:
    """Return a new workdir with copies of some folders of another one: a command follows no link out of a workdir."""
    for name in names:
        shutil.copytree(workdir.path / name, path / name)
    return Workdir(path)


def write_corpus(path: Path, count: int) -> Files:
    """Write so many pairs as JSON lines; return the source."""
    words = np.random.default_rng(0).integers(0, 1000, (count, 8))
    with open(path, "w") as file:
        for i, row in enumerate(words.tolist()):
            file.write(
                json.dumps({"en": f"w{i} " + " ".join(map(str, row)), "fr": " ".join(map(str, row[::-1]))}) + "\n"
            )
    return Files(train=(str(path),))


def file_digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file but the manifest, which holds times."""
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    return {name: hashlib.blake2b((folder / name).read_bytes()).hexdigest() for name in names}
