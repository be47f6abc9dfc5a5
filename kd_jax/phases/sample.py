"""Let students that learn in rounds write the texts of a round, for a teacher elsewhere to score."""

import jax

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.on_policy import Rounds
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.objective.terms import cached_signals
from kd_jax.phases.student import check_name, input_digests
from kd_jax.runtime import progress
from kd_jax.teaching.imported.base import required_signal
from kd_jax.teaching.rounds import scores_request
from kd_jax.training.model import initial_params, manifest_inputs, train_split
from kd_jax.training.rounds import write_current_texts


def run(experiment: ResolvedExperiment, workdir: Workdir, only: str = "") -> None:
    """Write the texts of the current round of every student in rounds, or of the one named `only`, as `student` does.

    A student's first parameters write those of its first round; its last checkpoint writes those of a later one. The
    texts of a round that are there already are left as they are. No teacher is needed.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder; its data must be prepared.
      only: a student's name; "" for all students in rounds.

    Raises:
      KdError: if there is no such student, or its folder was made with other inputs.
      Preempted: if the run was asked to stop; the same call begins the round's texts again.
    """
    check_name(experiment, only)
    in_rounds = [name for name, recipe in experiment.students.items() if isinstance(recipe.targets, Rounds)]
    if only and only not in in_rounds or not in_rounds:
        field = f"students.{only}.targets" if only else "students.NAME.targets"
        raise KdError(f"{field}: expected Rounds, whose texts `sample` writes, got none. Set targets=Rounds().")
    if workdir.teacher_is_imported:
        required_signal(experiment)
    for name in [only] if only else in_rounds:
        recipe = experiment.students[name]
        inputs = manifest_inputs(experiment, workdir, name, input_digests(experiment, workdir, name))
        if not workdir.model(name).begin(inputs):
            progress.print_result(f"{name}: already trained, {workdir.model(name).path}")
            continue
        params = jax.device_get(initial_params(experiment, workdir, recipe))
        split = train_split(workdir, recipe, {})
        number, texts = write_current_texts(experiment, workdir, name, split, params)
        rule, caches = recipe.targets, [workdir.round_cache(name, number, one) for one in cached_signals(recipe.terms)]
        assert isinstance(rule, Rounds)
        has_scores = all(cache.finished() for cache in caches)
        if has_scores or (workdir.model(TEACHER).finished() and not workdir.teacher_is_imported):
            progress.print_result(f"{name}: round {number + 1} of {rule.count} is in {texts.path}. Run `student`.")
        else:
            progress.print_result(scores_request(name, number, rule, texts))
