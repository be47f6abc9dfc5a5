"""Recipes of students: the settings that won in the experiments, and the controls that show what they are worth.

A config needs a teacher and these lines::

    student = recipes.distil(teacher, Smaller(decoder_layers=1, d_model=64, d_ff=256, heads=2), steps=1400)
    experiment = Experiment(..., students=recipes.with_controls(student), comparison=recipes.COMPARISON)

What was tried, with figures: docs/papers.md and docs/results.md.
"""

import dataclasses

import jax

from kd_jax.batches.targets import PseudoTargets
from kd_jax.config import MAX_ROWS, check_count
from kd_jax.errors import KdError
from kd_jax.experiment import Comparison, Experiment, Recipe, ResolvedExperiment, ResolvedRecipe, resolve
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.base import Architecture
from kd_jax.models.transformer import Transformer
from kd_jax.objective.terms import Term
from kd_jax.signals.topk import TopK
from kd_jax.students.init import FromTeacher, Random
from kd_jax.students.pretrained import Smaller

DEEP = 8  # layers of a stack, above which it is compiled as one layer
EVALUATIONS = 4  # of a training run; the checkpoint is chosen among them
COMPARISON = Comparison(
    baseline="student_init",
    distilled="student_kd",
    controls=("student_init", "student_smoothed", "student_scratch"),
)


def distil(
    teacher: Recipe,
    model: Architecture | Smaller,
    steps: int,
    *,
    references: int = 0,
    teacher_texts: bool = True,
    beam: int = 4,
    weight: float = 0.5,
    k: int = 32,
) -> Recipe:
    """Return a student that learns from its teacher, with the settings that won.

    It starts from the teacher's most important layers, heads, neurons and channels. Half of its loss is cross-entropy,
    half the divergence from the teacher's top k. Both are taken on the teacher's own texts, which it writes for all
    source text, with reference or without (sequence level and word level, Kim and Rush 2016, arXiv 1606.07947). Batches
    and optimizer are the teacher's. There is no dropout: a student's steps are too few to overfit.

    Args:
      teacher: of the experiment.
      model: the student's network, or the sizes in which it differs from the teacher's.
      steps: parameter updates.
      references: number of training examples whose references it may learn from; 0 for all.
      teacher_texts: whether the teacher writes the texts, by beam search. False for text generation, which has no
        prompts, and where that would take too long; then the references are the texts.
      beam: hypotheses of that search; 2 takes half the time of 4.
      weight: of the divergence, in [0, 1]; that of the cross-entropy is 1 - weight.
      k: the teacher's most probable tokens that the cache holds.

    Raises:
      KdError: if the weight is out of its range.

    Examples:
      >>> from kd_jax import EncoderDecoder, Training
      >>> teacher = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=2000, tokens_per_batch=512))
      >>> student = distil(teacher, Smaller(decoder_layers=1, d_ff=256), steps=1400, references=2000)
      >>> student.targets.of, student.training.steps, list(student.terms), student.model.dropout
      ('both', 1400, ['ce', 'kd'], 0.0)
    """
    if not 0 <= weight <= 1:
        raise KdError(f"weight: expected a number in [0, 1], got {weight}. Use 0.5.")
    terms = {
        "ce": Term(cross_entropy, weight=1 - weight),
        "kd": Term(forward_kl, weight=weight, signal=TopK(k=k)),
    }
    if isinstance(model, Smaller) and isinstance(teacher.model, Transformer):
        model = dataclasses.replace(model.resolve(teacher.model), dropout=0.0)
    training = dataclasses.replace(teacher.training, steps=steps, eval_every=max(1, steps // EVALUATIONS))
    return Recipe(
        model=model,
        terms={name: term for name, term in terms.items() if term.weight},
        training=training,
        init=FromTeacher(),
        # Where every example has its reference, the teacher's texts replace them.
        targets=PseudoTargets(of="both" if references else "train", beam=beam) if teacher_texts else None,
        references=references,
    )


def with_controls(student: Recipe) -> dict[str, Recipe]:
    """Return a distilled student as "student_kd" beside its controls, which have no teacher but the same steps.

    "student_scratch": cross-entropy on the references from random parameters; a small model as one would train it.
    "student_init": the same from the distilled student's start; without it, distillation is easily overrated.
    "student_smoothed": the same with label smoothing 0.1, which alone has part of the effect of soft targets (Yuan et
    al. 2020, arXiv 1909.11723).

    Examples:
      >>> from kd_jax import EncoderDecoder, Training
      >>> teacher = Recipe(EncoderDecoder(), {"ce": Term(cross_entropy)}, Training(steps=2000))
      >>> students = with_controls(distil(teacher, Smaller(decoder_layers=1), steps=1400, references=2000))
      >>> {name: (type(student.init).__name__, bool(student.targets)) for name, student in students.items()}
      {'student_scratch': ('Random', False), 'student_init': ('FromTeacher', False), \
'student_smoothed': ('FromTeacher', False), 'student_kd': ('FromTeacher', True)}
    """
    alone = dataclasses.replace(student, terms={"ce": Term(cross_entropy)}, targets=None)
    smoothed = {"ce": Term(cross_entropy, options={"label_smoothing": 0.1})}
    return {
        "student_scratch": dataclasses.replace(alone, init=Random()),
        "student_init": alone,
        "student_smoothed": dataclasses.replace(alone, terms=smoothed),
        "student_kd": student,
    }


def on_accelerator(experiment: Experiment, batch: int = 1) -> ResolvedExperiment:
    """Return an experiment with the settings of GPUs and TPUs for every model.

    Layers multiply in bfloat16, with parameters, gradients and sums in float32; attention of long rows has the
    platform's kernel (`attention="auto"`, the default everywhere); networks of more than DEEP layers are compiled as
    one layer in a scan.

    Args:
      experiment: as for a CPU.
      batch: factor on the tokens of a batch. A small batch leaves an accelerator idle; the updates stay as many, so
        each reads more text.

    Raises:
      KdError: if `batch` is not a positive integer, or as `resolve`.

    Examples:
      >>> from kd_jax import load_experiment
      >>> changed = on_accelerator(load_experiment("experiments/configs/smoke.py"), batch=4)
      >>> changed.teacher.model.compute, changed.teacher.training.tokens_per_batch
      ('bfloat16', 2048)
    """
    check_count("batch", batch, 1, MAX_ROWS)

    experiment = resolve(experiment)

    def change(recipe: ResolvedRecipe) -> ResolvedRecipe:
        training = dataclasses.replace(recipe.training, tokens_per_batch=batch * recipe.training.tokens_per_batch)
        model = recipe.model
        if isinstance(model, Transformer):
            deep = max(model.stacks().values()) > DEEP
            model = dataclasses.replace(model, compute="bfloat16", scan_layers=deep or model.scan_layers)
        return dataclasses.replace(recipe, model=model, training=training)

    students = {name: change(recipe) for name, recipe in experiment.students.items()}
    return dataclasses.replace(experiment, teacher=change(experiment.teacher), students=students)


def for_this_machine(experiment: Experiment, batch: int = 8) -> Experiment:
    """Return `on_accelerator` if JAX finds a GPU or TPU that multiplies in bfloat16, else the experiment as it is.

    NVIDIA's GPUs do from compute capability 8.0 on; a T4 does not.
    """
    device = jax.devices()[0]
    capability = float(getattr(device, "compute_capability", "inf"))
    return on_accelerator(experiment, batch) if device.platform != "cpu" and capability >= 8.0 else experiment
