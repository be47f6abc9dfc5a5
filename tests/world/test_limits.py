"""Every number of an experiment, replaced by a value that nobody means, is refused by its name within a second."""

import dataclasses
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from kd_jax import (
    AttentionRelations,
    DecoderOnly,
    Files,
    FromTeacher,
    HiddenStates,
    Mesh,
    Online,
    PseudoTargets,
    Sampled,
    Schedule,
    Smaller,
    Summarization,
    Term,
    TopK,
    cosine,
    forward_kl,
    load_experiment,
)
from kd_jax.errors import KdError
from kd_jax.experiment import Experiment, resolve
from kd_jax.models.rope import Llama3
from kd_jax.phases.check import check
from tests.conftest import ROOT

WRONG = (10**12, 10**30, 10**5000, -1, True, 1.5, "3", None, float("nan"))
PATIENCE = 20  # seconds for a check that takes milliseconds, on a busy machine


def experiments() -> dict[str, Experiment]:
    """Return experiments that together have every class with a number that needs no download."""
    smoke, lm = (load_experiment(ROOT / f"experiments/configs/{name}.py") for name in ("smoke", "smoke_lm"))
    student = smoke.students["student_kd"]
    terms = {
        "topk": Term(forward_kl, weight=Schedule(1.0, 0.5, steps=10), signal=TopK(k=8)),
        "sampled": Term(forward_kl, signal=Sampled(draws=8)),
        "online": Term(forward_kl, signal=Online(k=8)),
        "hidden": Term(cosine, signal=HiddenStates(layers=((0, 1),))),
        "relations": Term(forward_kl, signal=AttentionRelations(layers=((0, 1),), heads=2)),
    }
    rotary = DecoderOnly(
        layers=2, d_model=32, heads=2, d_ff=64, local=(0,), rope_scaling=Llama3(8.0, 1.0, 4.0, original=64)
    )
    documents = dataclasses.replace(lm.teacher, model=rotary)
    half = dataclasses.replace(documents, model=Smaller(layers=1), init=FromTeacher(decoder=(0,), sample=8))
    return {
        "smoke": dataclasses.replace(smoke, prompt_buckets=(32,)),
        "signals": dataclasses.replace(
            smoke,
            students={"all": dataclasses.replace(student, terms=terms, targets=PseudoTargets(rule="nbest", beam=2))},
            comparison=None,
        ),
        "texts": dataclasses.replace(lm, teacher=documents, students={"half": half}, comparison=None),
        "files": dataclasses.replace(
            smoke,
            source=Files(train=("a.en", "a.fr"), limit=9, labelled=3),
            task=Summarization(document="en", summary="fr", document_tokens=20),
        ),
        "mesh": dataclasses.replace(smoke, backend="mesh", mesh=Mesh(fsdp=2)),
    }


def integers(value: Any, path: str = "", hint: Any = None) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield (dotted field, a function from another value of that field to the whole with it) of each integer."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        parts = {f.name: (getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}

        def rebuild(name: str, part: Any) -> Any:
            return dataclasses.replace(value, **{name: part})
    elif isinstance(value, Mapping):
        parts = {name: (item, None) for name, item in value.items()}

        def rebuild(name: str, part: Any) -> Any:
            return {**value, name: part}
    elif isinstance(value, tuple):
        parts = {str(i): (item, int if type(item) is int else None) for i, item in enumerate(value)}

        def rebuild(name: str, part: Any) -> Any:
            return (*value[: int(name)], part, *value[int(name) + 1 :])
    else:
        if hint is int or type(value) is int:
            yield path, lambda other: other
        return
    for name, (part, part_hint) in parts.items():
        for inner, replace in integers(part, f"{path}.{name}" if path else name, part_hint):
            yield inner, lambda other, name=name, replace=replace: rebuild(name, replace(other))


EXPERIMENTS = experiments()
FIELDS = {
    f"{name}:{field}": (field, replace)
    for name, experiment in EXPERIMENTS.items()
    for field, replace in integers(experiment)
    if name == "smoke" or not any(field == other for other, _ in integers(EXPERIMENTS["smoke"]))
}


def refusal(experiment: Experiment) -> str:
    """Return the message of the check, "" if it passes."""
    start = time.perf_counter()
    try:
        check(resolve(experiment))
    except KdError as error:
        return str(error)
    finally:
        assert time.perf_counter() - start < PATIENCE
    return ""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_are_valid_as_they_are(name):
    assert not refusal(EXPERIMENTS[name])


def test_the_fields_are_found():
    names = {field for field, _ in FIELDS.values()}
    assert {"seed", "evaluation.bootstrap", "buckets.0", "teacher.training.optimizer.warmup", "source.limit"} <= names
    assert {"students.all.terms.sampled.signal.draws", "students.half.model.layers", "task.window"} <= names
    assert len(names) > 100


@pytest.mark.parametrize("letters", ["x" * 300, "é" * 60])
def test_a_long_name_is_refused(letters):
    smoke = EXPERIMENTS["smoke"]
    recipe = dataclasses.replace(smoke.teacher, terms={letters: smoke.teacher.terms["ce"]})
    for field, experiment in {
        "name": dataclasses.replace(smoke, name=letters),
        "students": dataclasses.replace(smoke, students={**smoke.students, letters: smoke.teacher}),
        "terms": dataclasses.replace(smoke, teacher=recipe),
    }.items():
        assert refusal(experiment).startswith(f"{field}: expected at most 100 bytes in a name, got '")


@pytest.mark.parametrize("field", FIELDS)
def test_a_number_that_nobody_means_is_refused_by_its_field(field):
    dotted, replace = FIELDS[field]
    names = [part for part in dotted.split(".") if not part.isdigit()]
    for value in WRONG:
        message = refusal(replace(value))
        assert "\n" not in message
        if message:
            # A field of Smaller is the model's; entries of a tuple have no name of their own.
            assert names[-1] in message or names[-2] in message, (value, message)
        else:  # -1 warm-up steps, say, are valid nowhere; None only where the type allows it
            assert value is None, (dotted, value)
