"""Write the teacher's signals for every training token to disk."""

from kd_jax.artifacts.manifest import IMPORT_PHASE
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.targets import TrainTargets
from kd_jax.experiment import ResolvedExperiment, required_signals
from kd_jax.provenance import check_upstream
from kd_jax.runtime import progress
from kd_jax.signals.topk import TopK
from kd_jax.teaching.imported.base import required_signal
from kd_jax.teaching.pseudo_targets import write_targets
from kd_jax.teaching.signal_cache import write_signal
from kd_jax.teaching.teacher import Teacher


def run(
    experiment: ResolvedExperiment, workdir: Workdir, force: bool = False, writer: tuple[int, int] | None = None
) -> None:
    """Write the pseudo-targets and signals that the students' terms and the evaluation read.

    Record i belongs to example i and carries its digest. Students with a smaller k of the same signal share one cache.

    Args:
      experiment: the resolved experiment.
      workdir: the run's folder; its teacher must be trained.
      force: write finished caches again.
      writer: (number, count) if several processes share the work; None for this host's share.

    Raises:
      KdError: if the teacher is not trained, or a signal does not fit the vocabulary.
    """
    if workdir.teacher_is_imported and not force:
        required_signal(experiment)
        progress.log(f"cache: imported by `{IMPORT_PHASE}`, nothing to write")
        return
    check_upstream(experiment, workdir, [workdir.model(TEACHER)])
    teacher = Teacher(experiment, workdir, writer)
    for targets, signals in required_signals(experiment).items():
        if targets.pseudo:
            write_targets(teacher, targets, force)
        for name, signal in signals.items():
            write_signal(teacher, workdir.cache(targets.name, name), signal, targets, "train", force)
    if experiment.evaluation.cached_k:
        signal = TopK(k=min(experiment.evaluation.cached_k, teacher.vocab_size))
        fields = {"evaluation.cached_k": experiment.evaluation.cached_k}
        write_signal(teacher, workdir.validation_cache, signal, TrainTargets(), "validation", force, fields)
