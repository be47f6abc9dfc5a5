"""Write a config to start from: it runs as it stands on JSON lines of one's own."""

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

from kd_jax.errors import KdError
from kd_jax.runtime import progress
from kd_jax.sources.text_files import JSON_SUFFIXES, Lines
from kd_jax.tasks.base import Task
from kd_jax.tasks.generation import Generation
from kd_jax.tasks.instructions import Instructions
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation


class Start(NamedTuple):
    """What a config of one task begins with.

    Attributes:
      task: with its defaults.
      says: what the config's first line calls it.
      call: the task in the config, with places for its fields.
      buckets: lines of the experiment.
      tokens: tokens_per_batch of an encoder-decoder, of a decoder-only model.
    """

    task: Task
    says: str
    call: str
    buckets: str
    tokens: tuple[int, int]


STARTS = {
    start.task.name: start
    for start in (
        Start(
            Translation(),
            "Translation",
            "Translation(source={}, target={})",
            "    # Padded lengths in tokens, of source and of translation; longer training examples are left out.\n"
            "    buckets=(16, 32, 64),",
            (512, 1024),
        ),
        Start(
            Summarization(),
            "Summarization",
            "Summarization(document={}, summary={}, document_tokens=255)",
            "    # Padded lengths in tokens, of summary and of document (its 255 first tokens and the end); training\n"
            "    # examples with longer summaries are left out.\n"
            "    buckets=(32, 64),\n"
            "    prompt_buckets=(128, 256),",
            (512, 1280),
        ),
        Start(
            Instructions(),
            "Answers to instructions",
            "Instructions(instruction={}, response={})",
            "    # Padded lengths in tokens, of instruction and of response; longer training examples are left out.\n"
            "    buckets=(32, 64, 128),",
            (512, 1024),
        ),
        Start(
            Generation(),
            "Language modelling",
            "Generation(text={}, window=256, context=64)",
            "    # Padded lengths in tokens, the last as long as the task's window; and of the beginnings that are\n"
            "    # gone on from when the models are evaluated.\n"
            "    buckets=(128, 256),\n"
            "    prompt_buckets=(16, 32),",
            (1024, 1024),
        ),
    )
}
# family -> the teacher's model, what a longer run takes, and what the students have less of
MODELS = {
    "encoder_decoder": (
        "EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=128, heads=4, d_ff=512, dropout=0.1)",
        "6 + 6 layers, d_model=512, heads=8, d_ff=2048",
        "encoder_layers=2, decoder_layers=1",
    ),
    "decoder_only": (
        "DecoderOnly(layers=4, d_model=128, heads=4, kv_heads=2, d_ff=352, dropout=0.1)",
        "12 layers, d_model=512, heads=8, kv_heads=4, d_ff=1408",
        "layers=2",
    ),
}


def run(path: str, task: str, family: str, train: str) -> None:
    """Writes the config, never over a file that is there.

    Args:
      path: of the config.
      task, family: by name.
      train: JSON lines; where the file is there, its fields are looked at.

    Raises:
      KdError: for an unknown task, a family that cannot serve it, fields that cannot be told, or a path that is taken.
    """
    if task not in STARTS:
        raise KdError(f"--task {task or 'missing'}: wanted one of {', '.join(STARTS)}")
    start = STARTS[task]
    if family not in start.task.families:
        raise KdError(
            f"--family {family or 'missing'}: {task} is served by {' or '.join(start.task.families)}; take it"
        )
    if Path(path).suffix != ".py" or {'"', "\\"} & set(path):
        raise KdError(f"new {path}: wanted the name of a Python file, such as mine.py")
    fields = start.task.fields()
    if Path(train).expanduser().is_file():
        if len(fields) > 1 or train.endswith(JSON_SUFFIXES):
            fields = text_fields(train, fields)
    else:
        progress.log(f"new: {train} is not there yet; the config wants {_listing(fields)} in every line of it")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:  # fails where there is one
            file.write(text(path, start, family, train, fields))
    except OSError as error:
        raise KdError(f"new {path}: {error.strerror}; take another name") from error
    progress.print_result(f"{path}: {task}, {family}; to run it:")
    progress.print_result(f"python -m kd_jax run {path} --workdir runs/{Path(path).stem}")


def text_fields(train: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """What the first line of JSON lines calls the task's fields.

    Those that the task calls so itself; for others, the texts that are left, in their order, where there are as many.

    Args:
      train: the file.
      wanted: the task's own names.

    Raises:
      KdError: if the line is no JSON object, or its fields cannot be told.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "train.jsonl")
      >>> _ = path.write_text('{"id": 7, "headline": "Fox gone", "document": "Mr. Fox left."}')
      >>> text_fields(str(path), ("document", "summary"))
      ('document', 'headline')
    """
    try:
        row = json.loads(Lines(train).read([0])[0])
    except json.JSONDecodeError as error:
        raise KdError(f"--train {train}, line 1: not JSON ({error.msg}); wanted one object a line") from error
    if not isinstance(row, dict):
        raise KdError(f"--train {train}, line 1: wanted an object with the fields {_listing(wanted)}")
    missing = [field for field in wanted if field not in row]
    others = [field for field, value in row.items() if isinstance(value, str) and field not in wanted]
    if len(missing) != len(others) and missing:
        raise KdError(
            f"--train {train}: has the fields {', '.join(row)}, the task wants {_listing(wanted)}; rename them there, "
            "or leave --train out and name them in the config"
        )
    names = dict(zip(missing, others, strict=False))
    if names:
        told = ", ".join(f'"{other}" for the {field}' for field, other in names.items())
        progress.log(f"new: {train} has the fields {', '.join(row)}; the config takes {told}")
    return tuple(names[field] if field in names else field for field in wanted)


def text(path: str, start: Start, family: str, train: str, fields: Sequence[str]) -> str:
    """The config's text, as ruff would format it."""
    model, longer, fewer = MODELS[family]
    class_names = [model[: model.index("(")], start.call[: start.call.index("(")]]
    names = sorted([*IMPORTS, *class_names])
    smoothed = ', options={"label_smoothing": 0.1}' if start.task.prompted else ""
    return CONFIG.substitute(
        says=start.says,
        kind=family.replace("_", "-"),
        path=path,
        stem=Path(path).stem,
        train=json.dumps(train, ensure_ascii=False),
        imports="".join(f"    {name},\n" for name in [*names, "cross_entropy", "forward_kl"]),
        model=model,
        longer=longer,
        fewer=fewer,
        smoothed=smoothed,
        tokens=start.tokens[family == "decoder_only"],
        task=start.call.format(*(json.dumps(field, ensure_ascii=False) for field in fields)),
        buckets=start.buckets,
    )


def _listing(fields: Sequence[str]) -> str:
    return " and ".join(f'"{field}"' for field in fields)


IMPORTS = ("Comparison", "Evaluation", "Experiment", "Files", "FromTeacher", "Optimizer", "Recipe", "SentencePiece")
IMPORTS += ("Term", "TopK", "Training")
CONFIG = Template('''\
"""$says by $kind Transformers: a teacher, and students of half its depth.

    python -m kd_jax plan $path
    python -m kd_jax run $path --workdir runs/$stem
    python -m kd_jax ablate $path --workdir runs/$stem-seeds --seeds 0 1 2

`plan` says what the teacher's knowledge would cost to keep; `run` does everything, and the same command goes on where
it was stopped; `ablate` asks with several seeds whether distillation adds anything. The sizes suit some thousand lines
and two cores, a matter of minutes. Change first: the source, the buckets (how long are your texts?), the steps. Any
field can be tried without an edit: --teacher.training.steps 2000
"""

import dataclasses

from kd_jax import (
$imports)

# The large model. A longer run on an accelerator: $longer.
teacher = Recipe(
    model=$model,
    terms={"ce": Term(cross_entropy$smoothed)},
    # tokens_per_batch counts padded target tokens; packed: short examples share a row. A longer run takes 20 times the
    # steps, 16 times the tokens, eval_every=1000, warmup=1000, and for a wider model learning_rate=5e-4.
    training=Training(
        steps=500,
        tokens_per_batch=$tokens,
        packed=True,
        eval_every=250,
        optimizer=Optimizer(learning_rate=2e-3, warmup=100),
    ),
)
# The small model, without a teacher's help.
ce_alone = Recipe(
    # Too few steps to overfit: dropout would only slow the students down.
    model=dataclasses.replace(teacher.model, $fewer, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=dataclasses.replace(teacher.training, steps=300, eval_every=150),
)
# With it: half of the loss is the distance to the teacher's 32 likeliest tokens at each place, kept once in a cache.
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="$stem",
    # One JSON object a line. Validation and test are held out of it, a twentieth each, unless they have files of their
    # own: validation=("validation.jsonl",), test=("test.jsonl",).
    source=Files(train=($train,), held_out=0.05),
    # The names are those of the fields in a line.
    task=$task,
    # Trained on the training texts. A longer run: 8000 to 32000; a few hundred lines fill no more than a few hundred.
    tokenizer=SentencePiece(vocab_size=2000),
$buckets
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        # From the teacher's own layers, some left out: without it, distillation is easily overrated.
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    # At most 300 test examples are written by every model; texts=0 for all.
    evaluation=Evaluation(texts=300),
)
''')
