"""Write a config to start from: an edited copy of starter_config.py, or of starter_pretrained.py for a folder."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_jax.errors import KdError
from kd_jax.models.transformer import Transformer
from kd_jax.runtime import progress
from kd_jax.sources.text_files import JSON_SUFFIXES, MESSAGES, Lines, chat_fields, parse_object
from kd_jax.students.pretrained import FromHuggingFace
from kd_jax.tasks.base import Task
from kd_jax.tasks.generation import Generation
from kd_jax.tasks.instructions import Instructions
from kd_jax.tasks.summarization import Summarization
from kd_jax.tasks.translation import Translation

STARTER, PRETRAINED = (Path(__file__).with_name(f"starter_{name}.py") for name in ("config", "pretrained"))
TASKS: dict[str, Task] = {
    task.name: task for task in (Translation(), Summarization(), Instructions(), Generation(window=256, context=64))
}
# Task, and family -> assignments of starter_config.py that differ for it.
TASK_EDITS = {
    "translation": {"task": "kd.Translation(source={}, target={})"},
    "summarization": {
        "task": "kd.Summarization(document={}, summary={}, document_tokens=255)",
        "buckets": "(32, 64)",
        "prompt_buckets": "(128, 256)",
    },
    "instructions": {"task": "kd.Instructions(instruction={}, response={})", "buckets": "(32, 64, 128)"},
    "generation": {
        "task": "kd.Generation(text={}, window=256, context=64)",
        "buckets": "(128, 256)",  # the last as long as the task's window
        "prompt_buckets": "(16, 32)",
        "label_smoothing": "0.0",
        "teacher_texts": "False",
    },
}
FAMILY_EDITS = {
    "encoder_decoder": {},
    "decoder_only": {
        "teacher_model": "kd.DecoderOnly(layers=4, d_model=128, heads=4, kv_heads=2, d_ff=352, dropout=0.1)",
        "student_model": "kd.Smaller(layers=2)",
        "tokens_per_batch": "1024",
    },
}


def run(path: str, task: str, family: str, train: Sequence[str], teacher: str = "") -> None:
    """Write a config; never overwrite a file.

    Args:
      path: the config to write.
      task: the task's name, one of TASKS.
      family: "encoder_decoder" or "decoder_only"; "" for that of the teacher's folder.
      train: a file with an object on each line, or a text file for each field. If they exist, the config takes the
        fields' names from the objects, or from the files' suffixes.
      teacher: local folder of a pretrained teacher in Hugging Face's layout; "" to train one.

    Raises:
      KdError: for an unknown task, a family that cannot serve it, ambiguous field names, or a path that exists.
    """
    if task not in TASKS:
        raise KdError(f"--task: expected one of {', '.join(TASKS)}, got {task}.")
    architecture = FromHuggingFace(teacher).architecture() if teacher else None
    if architecture and family not in ("", architecture.family):
        raise KdError(f"--family: expected {architecture.family}, that of {teacher}, got {family}. Leave it out.")
    family = architecture.family if architecture else family
    if family not in TASKS[task].families:
        raise KdError(f"--family: expected {' or '.join(TASKS[task].families)} for {task}, got {family}.")
    if Path(path).suffix != ".py" or {'"', "\\"} & set(path):
        raise KdError(f"new: expected the name of a Python file, got {path}. Example: mine.py.")
    for file in (one for one in map(Path, train) if one.exists() and not one.is_file()):
        raise KdError(f"--train: expected files, got {file}, which is none. Name the file with the training examples.")
    fields = TASKS[task].fields()
    if len(train) > 1:
        fields = fields_of_files(train, fields)
    elif not Path(train[0]).expanduser().is_file():
        progress.log(f"new: {train[0]} does not exist yet; each of its lines needs {_quoted(fields)}")
    elif len(fields) > 1 or train[0].endswith(JSON_SUFFIXES):
        fields = match_fields(train[0], fields)
    edits = TASK_EDITS[task] | FAMILY_EDITS[family]
    edits["task"] = edits["task"].format(*map(_literal, fields))
    edits["source"] = f"kd.Files(train=({', '.join(map(_literal, train))},), held_out=0.05)"
    if len(train) > 1:
        edits["source"] = edits["source"].replace(",),", "),")
    if architecture:
        edits |= {"folder": _literal(teacher), "student_model": smaller(architecture)}
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(config_text(path, PRETRAINED if teacher else STARTER, edits))
    except OSError as error:
        raise KdError(f"new: {path}: {error.strerror}. Choose another name.") from error
    progress.print_result(f"{path}: {task}, {family}; to run it:")
    progress.print_result(f"kd-jax run {path} --workdir runs/{Path(path).stem}")


def match_fields(train: str, fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names that the first line of a file has for a task's fields.

    A field keeps its name if the line has it. Missing ones take the remaining texts in order, if their numbers agree.
    The prompt and the answer of a chat (`messages`) keep the task's names.
    """
    where = f"{train}, line 1"
    row = parse_object(Lines(train).read([0])[0], fields, f"--train: {where}")
    if MESSAGES in row and not row.keys() & set(fields):
        return tuple(chat_fields(row[MESSAGES], fields, f"--train: {where}"))
    missing = [field for field in fields if field not in row]
    others = [field for field, value in row.items() if isinstance(value, str) and field not in fields]
    if missing and len(missing) != len(others):
        raise KdError(
            f"--train: {train}: expected {_quoted(fields)}, got {', '.join(row)}. Rename them in the file, or leave "
            "--train out and name them in the config."
        )
    names = dict(zip(missing, others, strict=False))
    for field, name in names.items():
        progress.log(f'new: the config takes "{name}" of {train} for the {field}')
    return tuple(names.get(field, field) for field in fields)


def fields_of_files(train: Sequence[str], fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names for a task's fields of a text file each: the files' suffixes if they differ.

    Examples:
      >>> fields_of_files(["train.en", "train.fr"], ("source", "target"))
      ('en', 'fr')
    """
    if len(train) != len(fields):
        raise KdError(
            f"--train: expected one file, or one for each of {_quoted(fields)}, got {len(train)}. Name them in this "
            "order."
        )
    suffixes = tuple(Path(file).suffix.removeprefix(".") for file in train)
    return suffixes if all(suffixes) and len(set(suffixes)) == len(suffixes) else tuple(fields)


def smaller(teacher: Transformer) -> str:
    """Return the expression of a student with half of the teacher's layers, of an encoder-decoder's decoder alone.

    Examples:
      >>> from kd_jax import DecoderOnly
      >>> smaller(DecoderOnly(layers=30))
      'kd.Smaller(layers=15)'
    """
    field = "layers" if teacher.family == "decoder_only" else "decoder_layers"
    return f"kd.Smaller({field}={max(1, teacher.stacks()['decoder'] // 2)})"


def config_text(path: str, starter: Path, edits: Mapping[str, str]) -> str:
    """Return a starter config with other values for some of its variables."""
    text = starter.read_text(encoding="utf-8")
    stem = Path(path).stem
    text = text.replace("mine.py", path).replace("runs/mine", f"runs/{stem}").replace('"mine"', _literal(stem))
    for name, value in edits.items():
        text = re.sub(
            rf"^{name} = [^#\n]*(?=  #|$)", lambda _, line=f"{name} = {value}": line, text, flags=re.MULTILINE
        )
    return text


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _quoted(fields: Sequence[str]) -> str:
    return " and ".join(f'"{field}"' for field in fields)
