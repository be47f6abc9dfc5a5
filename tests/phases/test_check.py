"""The check of an experiment: a field out of its range is refused in one line that names it."""

import dataclasses

import pytest

from kd_jax import (
    Comparison,
    DecoderOnly,
    Evaluation,
    FromCheckpoint,
    FromTeacher,
    Generation,
    KdError,
    Online,
    OnPolicy,
    PseudoTargets,
    Random,
    Rounds,
    Schedule,
    Term,
    TopK,
    cross_entropy,
    forward_kl,
    load_experiment,
    reverse_kl,
)
from kd_jax.cli.overrides import apply_overrides
from kd_jax.experiment import resolve
from kd_jax.phases.check import check
from kd_jax.phases.prepare import check_splits
from kd_jax.teaching.imported.base import required_signal
from tests.helpers.pretrained import CHAT, write_pretrained


@pytest.fixture(scope="module")
def smoke(root):
    return load_experiment(root / "experiments/configs/smoke.py")


CONFIGS = "experiments/configs"
FAMILIES = {"pretrained_lm": "decoder_only", "pretrained_chat": "decoder_only", "pretrained_seq2seq": "encoder_decoder"}


def test_the_shipped_configs_pass(root):
    for path in (root / CONFIGS).glob("*.py"):
        if path.stem not in FAMILIES:
            check(load_experiment(path))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pretrained_configs_pass_with_a_folder(root, tmp_path, name):
    """The folder's model has 3 layers, so the students get 1."""
    folder, layers = (
        write_pretrained(tmp_path / "model", FAMILIES[name], chat=CHAT if name == "pretrained_chat" else ""),
        ("layers", "decoder-layers")[name == "pretrained_seq2seq"],
    )
    words = ["--teacher.init.folder", str(folder)]
    words += [word for s in ("init", "kd") for word in (f"--students.student_{s}.model.{layers}", "1")]
    experiment = apply_overrides(str(root / CONFIGS / f"{name}.py"), words)
    assert experiment.teacher.model.stacks()["decoder"] == 3 and experiment.tokenizer.folder == str(folder)
    with pytest.raises(KdError, match="teacher.init.folder: .*--teacher.init.folder"):
        apply_overrides(str(root / CONFIGS / f"{name}.py"), [])


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "a\\b", "a\x00", "a\nb", "1a", "-a", "é", "manifest", "inputs", "teacher", "source"]
)
def test_a_name_that_is_no_file_name_or_hides_a_file_is_refused(smoke, name):
    students = {name: smoke.students["student_scratch"]}
    with pytest.raises(KdError, match="students: "):
        check(dataclasses.replace(smoke, students=students, comparison=None))


def test_a_student_must_not_have_the_name_of_an_int8_model(smoke):
    students = dict.fromkeys(("kd", "kd_int8"), smoke.students["student_scratch"])
    experiment = dataclasses.replace(smoke, students=students, comparison=None, evaluation=Evaluation(int8=("kd",)))
    with pytest.raises(KdError, match="students: expected another name than 'kd_int8', which kd with int8 weights has"):
        check(experiment)
    check(dataclasses.replace(experiment, evaluation=Evaluation(int8=("teacher", "kd_int8"))))


@pytest.mark.parametrize("name", ["a", "Student-2.1_b"])
def test_valid_names_pass(smoke, name):
    students = {name: smoke.students["student_scratch"]}
    check(dataclasses.replace(smoke, students=students, comparison=None))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": -1}, "seed: expected an integer in .0, 4294967295., got -1"),
        ({"seed": 0.5}, "seed: expected an integer in .*, got 0.5"),
        ({"buckets": ()}, "buckets"),
        ({"buckets": (20, 12)}, "ascending"),
        ({"buckets": (12, 12)}, "ascending"),
        (
            {"buckets": (12, 32), "prompt_buckets": (64,)},
            "prompt_buckets: expected one for each of buckets .12, 32., got .64,.",
        ),
        ({"buckets": (12, 32), "prompt_buckets": (64, 32)}, "prompt_buckets.*ascending"),
        ({"backend": "tpu"}, "backend: .*'tpu'"),
        (
            {"comparison": Comparison("student_scratch", "kd")},
            "comparison.distilled: expected a student .student_scratch, .*, got 'kd'",
        ),
        ({"evaluation": Evaluation(int8=("kd",))}, "evaluation.int8: expected models of teacher, .*, got 'kd'"),
    ],
)
def test_an_invalid_field_of_the_experiment_is_refused(smoke, change, message):
    with pytest.raises(KdError, match=message):
        check(dataclasses.replace(smoke, **change))


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch_size", 0),
        ("texts", -1),
        ("bootstrap", 1),
        ("speed_texts", 0),
        ("samples", 2.5),
        ("cached_k", -1),
        ("draft", -1),
        ("draft", 2.5),
        ("split", "train"),
    ],
)
def test_an_invalid_field_of_the_evaluation_is_refused(smoke, field, value):
    evaluation = dataclasses.replace(smoke.evaluation, **{field: value})
    with pytest.raises(KdError, match=f"evaluation.{field}: "):
        check(dataclasses.replace(smoke, evaluation=evaluation))


@pytest.mark.parametrize(
    "field, value",
    [
        ("length_penalty", float("nan")),
        ("length_penalty", -1.0),
        ("length_ratio", float("inf")),
        ("length", -1),
        ("beam", 0),
        ("sampling.temperature", -1.0),
        ("sampling.top_k", 2.5),
        ("sampling.top_p", 0.0),
        ("sampling.min_p", 1.0),
        ("sampling.repetition_penalty", 0.0),
        ("sampling.seed", -1),
    ],
)
def test_an_invalid_field_of_decoding_is_refused(smoke, field, value):
    decoding, (*part, name) = smoke.task.decoding, field.split(".")
    if part:
        decoding = dataclasses.replace(decoding, sampling=dataclasses.replace(decoding.sampling, **{name: value}))
    else:
        decoding = dataclasses.replace(decoding, **{name: value})
    with pytest.raises(KdError, match=f"task.decoding.{field}: "):
        check(dataclasses.replace(smoke, task=dataclasses.replace(smoke.task, decoding=decoding)))


@pytest.mark.parametrize(
    "field, value",
    [
        ("clip_norm", 0.0),
        ("beta1", 2.0),
        ("beta2", 1.0),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("final_fraction", 1.5),
        ("learning_rate", float("nan")),
        ("warmup", 0),
        ("schedule", "linear"),
    ],
)
def test_an_invalid_field_of_the_optimizer_is_refused(smoke, field, value):
    optimizer = dataclasses.replace(smoke.teacher.training.optimizer, **{field: value})
    training = dataclasses.replace(smoke.teacher.training, optimizer=optimizer)
    with pytest.raises(KdError, match=rf"teacher\..*optimizer\.{field}: "):
        check(dataclasses.replace(smoke, teacher=dataclasses.replace(smoke.teacher, training=training)))


@pytest.mark.parametrize("field", ["steps", "tokens_per_batch", "microbatches", "eval_every"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_an_invalid_field_of_the_training_is_refused(smoke, field, value):
    training = dataclasses.replace(smoke.teacher.training, **{field: value})
    with pytest.raises(KdError, match=f"teacher.training.{field}: "):
        check(dataclasses.replace(smoke, teacher=dataclasses.replace(smoke.teacher, training=training)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"terms": {"kd": Term(forward_kl, signal=TopK(k=8.5))}}, r"students.it.terms.kd.signal.k: .*8.5"),
        ({"terms": {"kd": Term("forward_kl", signal=TopK(k=8))}}, r"students.it.terms.kd.loss: .*forward_kl"),
        (
            {"terms": {"kd": Term(forward_kl)}},
            r"students.it.terms.kd.loss: expected a loss .* for no signal, got forward_kl",
        ),
        ({"init": FromTeacher(decoder=(7,))}, r"students.it.init.decoder: .*7"),
        ({"init": FromCheckpoint("no/such/folder")}, r"students.it.init.folder: .*'?no/such/folder"),
    ],
)
def test_an_invalid_recipe_is_refused(smoke, change, message):
    students = {"it": dataclasses.replace(smoke.students["student_init"], **change)}
    with pytest.raises(KdError, match=message):
        check(dataclasses.replace(smoke, students=students, comparison=None))


@pytest.mark.parametrize("change", [{"init": FromTeacher()}, {"terms": {"kd": Term(forward_kl, signal=TopK(k=8))}}])
def test_a_teacher_has_no_teacher(smoke, change):
    with pytest.raises(KdError, match="teacher.(init: expected Random|terms: expected references alone and no signal)"):
        check(dataclasses.replace(smoke, teacher=dataclasses.replace(smoke.teacher, **change)))


def with_model(experiment, model, **changes):
    """Return the experiment with one architecture for teacher and student, with random first parameters."""
    recipe = dataclasses.replace(experiment.teacher, model=model)
    return dataclasses.replace(experiment, teacher=recipe, students={"it": recipe}, comparison=None, **changes)


def test_a_family_that_cannot_serve_the_task_is_refused(smoke):
    with pytest.raises(KdError, match="teacher.model: expected decoder_only for generation, got encoder_decoder"):
        check(dataclasses.replace(smoke, task=Generation()))


@pytest.mark.parametrize("context", [63, 64])
def test_a_context_shorter_than_the_longest_row_is_refused(smoke, context):
    """A decoder-only row holds prompt and completion, 32 each."""
    experiment = with_model(smoke, DecoderOnly(2, positions="learned", context=context))
    if context < 64:
        with pytest.raises(KdError, match="teacher.model.context: expected at least 64, .* got 63"):
            check(experiment)
    else:
        check(experiment)


def test_pseudo_targets_without_prompts_are_refused(smoke):
    experiment = with_model(smoke, DecoderOnly(2), task=Generation())
    check(experiment)
    student = dataclasses.replace(experiment.teacher, targets=PseudoTargets())
    with pytest.raises(KdError, match="students.it.targets: expected None, since generation has no prompts"):
        check(dataclasses.replace(experiment, students={"it": student}))


def test_a_teacher_of_another_family_needs_cached_signals(smoke):
    for signal, refused in ((TopK(k=8), False), (Online(), True)):
        terms = smoke.teacher.terms | {"kd": Term(forward_kl, signal=signal)}
        student = dataclasses.replace(smoke.teacher, model=DecoderOnly(2), terms=terms)
        experiment = dataclasses.replace(smoke, students={"it": student}, comparison=None)
        if refused:
            with pytest.raises(
                KdError,
                match="students.it.model: expected encoder_decoder, as the teacher in the step, got decoder_only",
            ):
                check(experiment)
        else:
            check(experiment)
    student = dataclasses.replace(smoke.teacher, model=DecoderOnly(2), init=FromTeacher())
    with pytest.raises(KdError, match="students.it.model: .*decoder_only"):
        check(dataclasses.replace(smoke, students={"it": student}, comparison=None))


def with_on_policy(experiment, targets, **changes):
    """Return the experiment with one student of on-policy targets, with the teacher in the step."""
    terms = {"ce": Term(cross_entropy), "kd": Term(reverse_kl, signal=Online())}
    student = dataclasses.replace(experiment.students["student_kd"], targets=targets, **{"terms": terms} | changes)
    return dataclasses.replace(experiment, students={"it": student}, comparison=None)


def test_on_policy_targets_pass(smoke):
    for targets in (OnPolicy(), OnPolicy(share=Schedule(0.0, 1.0, 10), length=32), OnPolicy(others=PseudoTargets())):
        check(resolve(with_on_policy(smoke, targets)))
    student = with_on_policy(smoke, OnPolicy(beginning=31)).students["it"]
    model = with_model(smoke, DecoderOnly(2), task=Generation())
    student = dataclasses.replace(student, model=DecoderOnly(2), init=Random())
    check(dataclasses.replace(model, students={"it": student}))


@pytest.mark.parametrize(
    "targets, changes, message",
    [
        (OnPolicy(share=1.5), {}, r"targets.share: expected a number in \[0, 1\] or a Schedule, got 1.5"),
        (OnPolicy(share=Schedule(0.0, 2.0, 10)), {}, r"targets.share.end: expected a number in \[0, 1\], got 2.0"),
        (OnPolicy(pool=0), {}, "targets.pool: .* got 0"),
        (OnPolicy(temperature=-1.0), {}, "targets.temperature: .* got -1.0"),
        (OnPolicy(length=11), {}, "targets.length: expected from 12 to 32, .* got 11"),
        (OnPolicy(length=33), {}, "targets.length: expected from 12 to 32, .* got 33"),
        (OnPolicy(others=PseudoTargets(beam=0)), {}, "targets.beam: .* got 0"),
        (
            OnPolicy(others=PseudoTargets(), unlabelled=True),
            {},
            "targets.unlabelled: expected False beside targets.others, .* got True",
        ),
        (
            OnPolicy(),
            {"terms": {"kd": Term(forward_kl, signal=TopK(k=8)), "own": Term(reverse_kl, signal=Online())}},
            "targets: expected no cached signal beside OnPolicy, .* got topk. Use signal=Online",
        ),
        (
            OnPolicy(),
            {"terms": {"ce": Term(cross_entropy)}},
            "terms: expected a term with the teacher in the step beside OnPolicy, .* got ce",
        ),
        (
            OnPolicy(),
            {"model": DecoderOnly(2), "init": Random()},
            "model: expected encoder_decoder, as the teacher in the step, got decoder_only",
        ),
    ],
)
def test_invalid_on_policy_targets_are_refused_in_one_line(smoke, targets, changes, message):
    buckets = dataclasses.replace(smoke, buckets=(12, 32))
    with pytest.raises(KdError, match=rf"^students\.it\.{message}") as error:
        check(resolve(with_on_policy(buckets, targets, **changes)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "targets, message",
    [
        (OnPolicy(beginning=0), "targets.beginning: expected from 1 to 31 tokens of each document .* got 0"),
        (OnPolicy(beginning=32), "targets.beginning: expected from 1 to 31 .* got 32"),
        (OnPolicy(beginning=8, unlabelled=True), "targets.unlabelled: expected False, since generation has no prompts"),
        (OnPolicy(beginning=8, others=PseudoTargets()), "targets.others: expected None, since generation has no"),
    ],
)
def test_on_policy_targets_that_do_not_fit_a_task_without_prompts_are_refused(smoke, targets, message):
    experiment = with_on_policy(smoke, targets, model=DecoderOnly(2), init=Random())
    experiment = dataclasses.replace(
        experiment, task=Generation(), teacher=dataclasses.replace(smoke.teacher, model=DecoderOnly(2))
    )
    with pytest.raises(KdError, match=rf"^students\.it\.{message}"):
        check(resolve(experiment))


CACHED = {"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=TopK(k=8))}


def test_rounds_pass(smoke):
    """Also with as many rounds as updates, and with a student of the other family: the teacher writes a cache."""
    for targets in (
        Rounds(),
        Rounds(share=Schedule(0.0, 1.0, 10), length=32, count=60, examples=7),
        Rounds(count=1, others=PseudoTargets()),
        Rounds(unlabelled=True, temperature=0.0),
    ):
        check(resolve(with_on_policy(smoke, targets, terms=CACHED)))
    check(resolve(with_on_policy(smoke, Rounds(), terms=CACHED, model=DecoderOnly(2), init=Random())))


@pytest.mark.parametrize(
    "targets, terms, message",
    [
        (Rounds(count=0), CACHED, "targets.count: expected an integer in .1, .* got 0"),
        (Rounds(count=True), CACHED, "targets.count: .* got True"),
        (Rounds(count=61), CACHED, "targets.count: expected at most 60, one update a round, got 61. Set targets.count"),
        (Rounds(examples=-1), CACHED, "targets.examples: .* got -1. Use 0 for all"),
        (Rounds(share=-0.1), CACHED, r"targets.share: expected a number in \[0, 1\] or a Schedule, got -0.1"),
        (Rounds(temperature=-1.0), CACHED, "targets.temperature: .* got -1.0"),
        (Rounds(length=33), CACHED, "targets.length: expected from 12 to 32, .* got 33"),
        (Rounds(others=PseudoTargets(), unlabelled=True), CACHED, "targets.unlabelled: expected False beside"),
        (
            Rounds(),
            {**CACHED, "own": Term(reverse_kl, signal=Online())},
            "terms: expected no teacher in the step beside Rounds, whose signals are cached, got one. Use a",
        ),
        (
            Rounds(),
            {"ce": Term(cross_entropy)},
            "terms: expected a term with a cached signal beside Rounds, such as .*, got ce",
        ),
    ],
)
def test_invalid_rounds_are_refused_in_one_line(smoke, targets, terms, message):
    with pytest.raises(KdError, match=rf"^students\.it\.{message}") as error:
        check(resolve(with_on_policy(dataclasses.replace(smoke, buckets=(12, 32)), targets, terms=terms)))
    assert "\n" not in str(error.value)


def test_rounds_of_a_task_without_prompts_need_a_beginning(smoke):
    parts = {"model": DecoderOnly(2), "init": Random(), "terms": CACHED}
    teacher = dataclasses.replace(smoke.teacher, model=DecoderOnly(2))
    for targets, message in {
        Rounds(beginning=0): "targets.beginning: expected from 1 to 31 tokens of each document .* got 0",
        Rounds(beginning=8, unlabelled=True): "targets.unlabelled: expected False, since generation has no prompts",
    }.items():
        experiment = with_on_policy(smoke, targets, **parts)
        with pytest.raises(KdError, match=rf"^students\.it\.{message}"):
            check(resolve(dataclasses.replace(experiment, task=Generation(), teacher=teacher)))


def test_a_teacher_learns_from_no_texts_of_its_own(smoke):
    terms = {"kd": Term(reverse_kl, signal=Online())}
    for changes in ({"targets": OnPolicy()}, {"targets": OnPolicy(), "terms": terms}):
        with pytest.raises(KdError, match="^teacher.targets: "):
            check(resolve(dataclasses.replace(smoke, teacher=dataclasses.replace(smoke.teacher, **changes))))


def test_on_policy_targets_beside_an_imported_teacher_are_refused(smoke):
    """Its log-probabilities are of stored texts."""
    experiment = with_on_policy(smoke, OnPolicy(), init=Random())
    with pytest.raises(KdError, match="^students.it.targets: expected the data's targets or Rounds, got OnPolicy"):
        required_signal(experiment)


@pytest.mark.parametrize(
    "references, unlabelled, refused", [(0, 0, True), (50, 0, True), (40, 0, False), (0, 7, False)]
)
def test_unlabelled_prompts_need_examples_without_a_reference(smoke, references, unlabelled, refused):
    """Of 50 training examples; 50 references are all of them."""
    experiment = with_on_policy(smoke, OnPolicy(unlabelled=True), references=references)
    counts = {"train": 50, "validation": 5, "test": 5} | ({"unlabelled": unlabelled} if unlabelled else {})
    if refused:
        with pytest.raises(KdError, match="^students.it.targets.unlabelled: expected examples without"):
            check_splits(experiment, counts)
    else:
        check_splits(experiment, counts)
