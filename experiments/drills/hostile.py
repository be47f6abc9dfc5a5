"""Hostile input: links, pipes and devices in place of files, bombs, control characters, files of other programs."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import TINY, Case
from spoilt import CACHE, EVALUATE, EXPORT, GENERATE, REPORT, STUDENT, edit_json, readers

TARGETS = ("/dev/zero", "/dev/urandom", "/etc/passwd", "/proc/self/environ", "pipe")
COPY = f"""import dataclasses
from kd_jax import *
tiny = load_experiment({str(TINY)!r})
def pretrained(folder):
    teacher = dataclasses.replace(tiny.teacher, model=None, init=FromHuggingFace(folder))
    return {{"teacher": teacher, "tokenizer": HuggingFaceTokenizer()}}
"""
IMPORT = ("import-logprobs", "{here}/records", "--workdir", "{run}", "--temperature", "1", "--mode", "raw", "--force")
RECORDS = {  # text of a file of log-probabilities
    "1,000,000 brackets": "[" * 1_000_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a huge integer": '{"prompt_token_ids": [' + "9" * 6000 + '], "prompt_logprobs": [null]}',
    "NaN": '{"prompt_token_ids": [1], "prompt_logprobs": [NaN]}',
    "an id of 10**18": json.dumps(
        {"prompt_token_ids": [1, 10**18], "prompt_logprobs": [None, {"1": {"logprob": -1.0, "rank": 1}}]}
    ),
    "null": "null",
    "an empty list": "[]",
    "one long position among short ones": json.dumps(
        {
            "prompt_token_ids": [5] * 20_000,
            "prompt_logprobs": [None, {str(i): {"logprob": -9.0, "rank": i + 1} for i in range(20_000)}]
            + [{"5": {"logprob": -1.0, "rank": 1}}] * 19_998,
        }
    ),
    "flat positions that overlap": json.dumps(
        {
            "prompt_token_ids": [5] * 20_000,
            "prompt_logprobs": {
                "start_indices": [0] * 20_000,
                "end_indices": [20_000] * 20_000,
                "token_ids": [5] * 20_000,
                "logprobs": [-1.0] * 20_000,
                "ranks": [1] * 20_000,
            },
        }
    ),
}
EXPERIMENT = {  # place in experiment.json -> value
    ("fields", "teacher", "fields", "model", "fields", "encoder_layers"): 10**9,
    ("fields", "students", "mapping", "student_kd", "fields", "model", "fields", "d_model"): 2**40,
    ("fields", "students", "mapping", "student_kd", "fields", "model", "fields", "heads"): 0,
    ("fields", "buckets"): [2**40],
    ("fields", "name"): "\x1b[2Jname\u202e",
    ("fields", "task", "class"): "os.system",
    ("fields", "source", "class"): "\x1b[31mmine.Source",
    ("fields", "task", "fields", "decoding", "fields", "length"): 2**40,
}
CONFIGS = {
    "a corpus from /dev/zero": "source=Files(train=('/dev/zero',))",
    "a corpus from /dev/urandom": "source=Files(train=('/dev/urandom',))",
    "a corpus from a pipe": "source=Files(train=('{here}/pipe',))",
    "a corpus of one line of 50 MB": "source=Files(train=('{here}/long.jsonl',))",
    "a corpus 100,000 brackets deep": "source=Files(train=('{here}/deep.jsonl',))",
    "a corpus that is compressed": "source=Files(train=('{here}/corpus.jsonl.gz',))",
    "a name with ESC and U+202E in an error": "students={{'\\x1b[2J\\u202e': tiny.teacher}}, comparison=None",
    "a folder with ESC": "**pretrained('\\x1b[2J')",
    "a model folder of links to /dev/zero": "**pretrained('{here}/zeros')",
    "a model folder of pipes": "**pretrained('{here}/pipes')",
    "a model folder with a deep config.json": "**pretrained('{here}/deep')",
    "a model folder with 10**9 layers": "**pretrained('{here}/layers')",
}


def cases(run: Path) -> list[Case]:
    """Return the cases."""
    return [*links(run), *link_folders(), *records(), *experiments(), *configs(), *texts()]


def links(run: Path) -> Iterator[Case]:
    """Yield links to devices and other files, and pipes, in place of a run's files."""
    chosen = (
        "experiment.json",
        "data/manifest.json",
        "data/tokenizer.model",
        "data/train.lengths.npy",
        "data/test.jsonl",
    )
    chosen += ("cache/topk/records-00000.arrayrecord", "cache/topk/records.index.json", "teacher/metrics.jsonl")
    chosen += ("students/student_kd/manifest.json", "evaluation/teacher.jsonl", "evaluation/baselines.json")
    for name, commands in readers(run):
        if name in chosen:
            for target in TARGETS:
                spoil = functools.partial(replace_by_link, name=name, target=target)
                yield Case(f"{name} is {target}: {commands[0][0]}", commands[0], spoil)
    for target in ("/dev/zero", "pipe", "victim"):
        for words in (REPORT, STUDENT, CACHE):
            spoil = functools.partial(replace_by_link, name=".kd_jax.lock", target=target)
            yield Case(f".kd_jax.lock is {target}: {words[0]}", words, spoil)


def link_folders() -> Iterator[Case]:
    """Yield links out of the workdir in place of its folders."""
    for name in ("data", "students", "teacher", "cache", "evaluation", "report", "students/student_kd"):
        for words in (GENERATE, REPORT, STUDENT, EVALUATE, EXPORT):
            yield Case(
                f"{name} is a link out of the workdir: {words[0]}", words, functools.partial(move_out, name=name)
            )


def records() -> Iterator[Case]:
    """Yield files of log-probabilities that are bombs or nonsense, in each format."""
    for name, text in RECORDS.items():
        for kind in ("vllm", "sglang"):
            yield Case(f"log-probabilities, {name}: {kind}", (*IMPORT, "--format", kind), write_records(text.encode()))
    for kind in ("vllm", "sglang", "distillkit", "maxtext"):
        words = (*IMPORT, "--format", kind)
        for target in ("/dev/zero", "pipe"):
            yield Case(
                f"log-probabilities from {target}: {kind}", words, functools.partial(link_records, target=target)
            )
        for name, data in {
            "noise": os.urandom(5000),
            "zeros": bytes(2**20),
            "nothing": b"",
            "a line of 30 MB": b"1" * 30_000_000,
        }.items():
            yield Case(f"log-probabilities, {name}: {kind}", words, write_records(data))


def experiments() -> Iterator[Case]:
    """Yield experiment.json with values of a stranger."""
    for place, value in EXPERIMENT.items():
        for words in (GENERATE,) if place[-1] == "name" else (GENERATE, EXPORT):  # the card has the name
            spoil = functools.partial(edit_json, place=place, other=value, run_name="experiment.json")
            yield Case(f"experiment.json, {place[-1]} = {value!r}: {words[0]}", words, spoil, refused=False)


def configs() -> Iterator[Case]:
    """Yield experiments that read a stranger's files."""
    for name, field in CONFIGS.items():
        yield Case(
            name, ("run", "{here}/mine.py", "--workdir", "{here}/w"), functools.partial(write_config, field=field)
        )


def texts() -> Iterator[Case]:
    """Yield texts on standard input; each line gives one."""
    for name, stdin, count in (
        ("control characters", "\x1b[2Jone\u202e red\x9b houses\n\x07\x00\n", 2),
        ("a line of 1 MB", "one red houses " * 70_000 + "\n", 1),
        ("100,000 brackets", "[" * 100_000 + "\n", 1),
        ("a byte order mark", "\ufeffone red houses\n", 1),
        ("line separators", "one\u2028red\u0085houses\n", 1),
        ("no line end", "one red houses", 1),
        ("nothing", "", 0),
        ("blank lines", "\n\n \n", 3),
    ):
        is_right = functools.partial(has_lines, count=count)
        yield Case(f"standard input, {name}: generate", GENERATE, refused=False, stdin=stdin, is_right=is_right)


def has_lines(out: str, count: int) -> bool:
    """Return whether a standard output has so many lines, to its end."""
    return out.count("\n") == count and out[-1:] in ("", "\n")


def replace_by_link(sandbox: Path, name: str, target: str) -> None:
    """Put a link, or a pipe, in place of a file of the run."""
    path = sandbox / "run" / name
    path.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(path)
    elif target == "victim":
        (sandbox / "victim").write_text("the user's own")
        path.symlink_to(sandbox / "victim")
    else:
        path.symlink_to(target)


def move_out(sandbox: Path, name: str) -> None:
    """Move a folder of the run out of it, and leave a link."""
    (sandbox / "run" / name).rename(sandbox / "outside")
    (sandbox / "run" / name).symlink_to(sandbox / "outside")


def write_records(data: bytes) -> Callable[[Path], object]:
    """Return a function that writes a file of log-probabilities."""
    return lambda sandbox: (sandbox / "records").write_bytes(data)


def link_records(sandbox: Path, target: str) -> None:
    """Put a link or a pipe in place of the log-probabilities."""
    if target == "pipe":
        os.mkfifo(sandbox / "records")
    else:
        (sandbox / "records").symlink_to(target)


def write_config(sandbox: Path, field: str) -> None:
    """Write an experiment file that reads a stranger's files, and those files."""
    (sandbox / "mine.py").write_text(f"{COPY}experiment = dataclasses.replace(tiny, {field.format(here=sandbox)})\n")
    os.mkfifo(sandbox / "pipe")
    (sandbox / "long.jsonl").write_text(json.dumps({"en": "a " * 25_000_000, "fr": "b"}) + "\n")
    (sandbox / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (sandbox / "corpus.jsonl.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for folder in ("zeros", "pipes", "deep", "layers"):
        (sandbox / folder).mkdir()
        for name in names:
            if folder == "zeros":
                (sandbox / folder / name).symlink_to("/dev/zero")
            elif folder == "pipes":
                os.mkfifo(sandbox / folder / name)
            else:
                (sandbox / folder / name).write_text("{}")
    (sandbox / "deep" / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    layers = {"model_type": "llama", "num_hidden_layers": 10**9, "hidden_size": 8, "num_attention_heads": 1}
    (sandbox / "layers" / "config.json").write_text(json.dumps({**layers, "vocab_size": 8, "intermediate_size": 8}))
