"""What each folder of a run was made from, compared with an experiment and with the other folders as they are now.

Every manifest has the experiment's fields that decide its folder, under their full names ("teacher.model.d_model"),
digests of the user's modules ("code.MODULE"), and digests of what the phase read ("consumed.NAME"). So one comparison
serves all phases and all fields.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from kd_jax import config
from kd_jax.artifacts.manifest import Folder
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, ResolvedExperiment, required_signals
from kd_jax.sources.base import UNLABELLED
from kd_jax.user_code import code_digests

# The fields that each phase reads, in the order of the phases. PHASE --force may change them, for the folders of later
# phases too: they are out of date until they are made again.
FIELDS = {
    "prepare": ("source*", "task*", "tokenizer*"),
    "teacher": ("teacher*", "task*", "seed", "buckets"),
    "cache": (
        "students.*.targets*",
        "students.*.references",
        "students.*.terms.*.signal*",
        "evaluation.cached_k",
        "task*",
        "*buckets",
        "seed",
    ),
    "student": ("students.*", "task*", "seed", "buckets"),
    "evaluate": (),  # the last
}
PHASES = tuple(FIELDS)
ROOTS = {field.name for field in dataclasses.fields(Experiment)}


def input_fields(experiment: ResolvedExperiment) -> dict[str, Any]:
    """Return every field by its full name, as manifests have them: padded lengths as the phases use them."""
    return config.flatten(experiment) | {
        "buckets": [list(bucket) for bucket in experiment.shapes],
        "prompt_buckets": list(experiment.prompt_widths),
    }


def folders(experiment: ResolvedExperiment, workdir: Workdir) -> list[Folder]:
    """Return the folders that the phases make of an experiment, in the order of the phases.

    An imported teacher is not among them: `import-logprobs` reads experiment.json.
    """
    made = [workdir.data] + ([] if workdir.teacher_is_imported else [workdir.model(TEACHER)])
    for targets, signals in required_signals(experiment).items():
        if targets.pseudo:
            made += [workdir.hypotheses(split, targets.pseudo.beam) for split in ("train", UNLABELLED)]
            made.append(workdir.split(targets.name))
        made += [workdir.cache(targets.name, signal) for signal in signals]
    if experiment.evaluation.cached_k:
        made.append(workdir.validation_cache)
    return [*made, *map(workdir.model, experiment.students), workdir.evaluation]


def check_fields(experiment: ResolvedExperiment, workdir: Workdir, force: Collection[str] = (), only: str = "") -> None:
    """Check an experiment against the manifests of all folders in a workdir, before a command does anything.

    Args:
      experiment: of the command.
      workdir: the run's folder.
      force: phases that the command makes again; the fields that they read may differ, but not for earlier phases.
      only: the student that is made again; "" for all.

    Raises:
      KdError: names the first field that differs, or the module whose source has changed.
    """
    now = _current(experiment)
    first = min(map(PHASES.index, force), default=len(PHASES))
    free = [pattern for phase in force for pattern in (*FIELDS[phase], "code.*")]
    for folder in folders(experiment, workdir):
        if folder.phase in force and (folder.phase != "student" or only in ("", folder.path.name)):
            continue
        _check_fields(folder, now, free if PHASES.index(folder.phase) > first else ())


def check_model(experiment: ResolvedExperiment, workdir: Workdir, name: str) -> None:
    """Check that a trained model is of this experiment, and that all that it was made from is still there as it was.

    Raises:
      KdError: if the model is not finished; or names the first field or digest that differs.
    """
    check_built("teacher.model" if name == TEACHER else f"students.{name}.model", experiment.recipes[name].model)
    folder, now = workdir.model(name), _current(experiment)
    folder.manifest()
    for one in (workdir.data, folder):
        _check_fields(one, now)
    check_upstream(experiment, workdir, [folder])


def check_upstream(
    experiment: ResolvedExperiment, workdir: Workdir, finished: Iterable[Folder], targets: str = ""
) -> None:
    """Check the digests of what folders were made from, all the way up; the first phases are named first.

    A folder that is not there any more, such as a deleted cache, is not compared.

    Args:
      experiment: of the run.
      workdir: the run's folder.
      finished: the folders; unfinished ones are left out.
      targets: name of the pseudo-targets that the caches among them belong to; "" for none.
    """
    seen: set[str] = set()
    targets_of = {str(workdir.model(name).path): one.train_targets.name for name, one in experiment.recipes.items()}

    def check(folder: Folder, targets: str) -> None:
        if str(folder.path) in seen or folder.path == workdir.data.path or not folder.finished():
            return
        seen.add(str(folder.path))
        inputs = folder.inputs()
        targets = targets_of.get(str(folder.path), targets)
        origins = {name: _origin(workdir, name, inputs, targets) for name in inputs if name.startswith("consumed.")}
        for origin in origins.values():
            if origin:
                check(origin.folder, targets if origin.shares_targets else "")
        for name, origin in origins.items():
            digest = origin.digest() if origin else None
            if digest not in (None, inputs[name]):
                raise folder.other_input(name, inputs, {name: digest})

    for folder in finished:
        check(folder, targets)


class Origin(NamedTuple):
    """An output of a folder that another folder was made from.

    Attributes:
      folder: the folder.
      keys: where the digest stands in its outputs.
      shares_targets: whether it belongs to the same pseudo-targets as the folder that was made from it.
    """

    folder: Folder
    keys: tuple[str, ...] = ("digest",)
    shares_targets: bool = False

    def digest(self) -> Any:
        """Return the digest; None if the folder is not finished."""
        value: Any = self.folder.outputs() if self.folder.finished() else None
        for key in self.keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def _origin(workdir: Workdir, name: str, inputs: Mapping[str, Any], targets: str) -> Origin | None:
    """Return what an input "consumed.NAME" is of; None for files outside the workdir."""
    _, kind, *rest = name.split(".", 2)
    data, argument = workdir.data, rest[0] if rest else ""
    if kind in ("train", "validation"):
        return Origin(data, ("splits", kind))
    if kind == "split" and targets:
        return Origin(workdir.split(targets))
    if kind == "split":
        return Origin(data, ("splits", str(argument or inputs.get("split") or inputs.get("evaluation.split"))))
    if kind == "tokenizer":
        return Origin(data, ("tokenizer",))
    if kind in ("teacher", "model"):
        return Origin(workdir.model(argument or TEACHER))
    if kind == "targets":
        return Origin(workdir.split(targets))
    if kind == "cache":
        return Origin(workdir.cache(targets, argument), shares_targets=True)
    if kind == "nbest":
        return Origin(workdir.hypotheses(argument, inputs["targets.beam"]))
    return Origin(workdir.validation_cache) if kind == "validation_topk" else None


def check_built(name: str, part: Any) -> None:
    """Check that a part of an experiment is an object: reading a workdir imports no module of the user's.

    Args:
      name: of the field, such as "task".
      part: its value, as `config.from_data` returns it.

    Raises:
      KdError: names the class, and the ways to bring it.
    """
    if config.is_unbuilt(part):
        raise KdError(
            f"{name}: expected a class of kd_jax, got {part['class']}, and reading a workdir runs no code of others. "
            "Add --config CONFIG, or in Python experiment=kd_jax.load_experiment(CONFIG)."
        )


def _current(experiment: ResolvedExperiment) -> dict[str, Any]:
    """Return the fields and code of an experiment as JSON gives them back."""
    return json.loads(json.dumps(input_fields(experiment) | code_digests(experiment)))


def _check_fields(folder: Folder, now: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Check the fields that a folder depends on, except those of the patterns `free`."""
    if not folder.has_output():
        return
    before = folder.inputs()
    for name in sorted(before.keys() | now.keys()):
        if differs(name, before, now) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in free):
            raise folder.other_input(name, before, now)


def differs(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a field that a folder depends on has another value, is gone, or was added."""
    root = name.partition(".")[0]
    if root == "code":  # a module that is not needed any more is gone together with a field or with an import
        return name in before and name in now and before[name] != now[name]
    if name in before:
        return root in ROOTS and (name not in now or before[name] != now[name])
    # Added: a key of a mapping, or an argument of a functools.partial, in something that the folder depends on. A field
    # of a class that is not in the manifest does not decide the folder.
    parent = owner = name.rpartition(".")[0]
    while owner and owner not in now:
        owner = owner.rpartition(".")[0]
    return owner in before and (owner != parent or str(now[owner]).startswith("functools.partial("))
