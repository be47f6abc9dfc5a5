"""Spoilt files: every file of a run and of an export, damaged in several ways, read by the commands that need it."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Case

GENERATE = ("generate", "--workdir", "{run}")
TEACHER = (*GENERATE, "--model", "teacher")
EXPORT = ("export", "--workdir", "{run}", "--to", "{here}/out")
REPORT = ("report", "{config}", "--workdir", "{run}")
EVALUATE = ("evaluate", "{config}", "--workdir", "{run}", "--force")
STUDENT = ("student", "{config}", "--workdir", "{run}", "--only", "student_kd", "--force")
CACHE = ("cache", "{config}", "--workdir", "{run}")
READERS = [  # files -> commands that read them; the first pattern that matches a file counts
    ("experiment.json", (GENERATE, EXPORT, REPORT)),
    ("data/tokenizer.model", (GENERATE, EVALUATE, EXPORT)),
    ("data/manifest.json", (GENERATE, STUDENT, REPORT)),
    ("data/inputs.json", (STUDENT, REPORT)),
    ("data/train*", (STUDENT,)),
    ("data/*", (EVALUATE,)),
    ("cache/topk/*", (STUDENT, CACHE)),
    ("cache/validation_topk/*", (EVALUATE, CACHE)),
    ("teacher/checkpoints/*/params/**/*", (TEACHER,)),
    ("teacher/checkpoints/**/*", (TEACHER,)),
    ("teacher/*", (TEACHER, STUDENT, REPORT)),
    ("students/student_kd/checkpoints/**/*", (GENERATE,)),
    ("students/student_kd/*", (GENERATE, EXPORT, REPORT)),
    ("evaluation/*", (REPORT,)),
    ("report/*", (REPORT,)),
]


def halve(path: Path) -> None:
    """Keep the first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    """Keep nothing."""
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flip a bit in the middle."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 4
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def replace_by_noise(path: Path) -> None:
    """Write other bytes of the same length."""
    data = path.read_bytes()
    path.write_bytes((hashlib.sha256(data).digest() * (len(data) // 32 + 1))[: len(data)])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "halved": halve,
    "emptied": empty,
    "a bit flipped": flip,
    "deleted": Path.unlink,
    "a folder": replace_by_folder,
    "noise": replace_by_noise,
}
TEXTS = {
    "null": "null",
    "a list": "[]",
    "an empty object": "{}",
    "a string": '"x"',
    "a number": "7",
    "100,000 deep": "[" * 100_000 + "]" * 100_000,
    "an integer of 5,000 digits": "1" * 5000,
    "NaN": "NaN",
    "not UTF-8": "\udcff",
}


def cases(run: Path) -> list[Case]:
    """Return the cases for the files of a run."""
    return [*damaged_files(run), *other_json(run), *redone_digests(run)]


def readers(run: Path) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    """Yield each file below the run and the commands that read it."""
    seen: set[str] = set()
    for pattern, commands in READERS:
        for path in sorted(run.glob(pattern)):
            name = path.relative_to(run).as_posix()
            if path.is_file() and name not in seen:
                seen.add(name)
                yield name, commands


def damaged_files(run: Path) -> Iterator[Case]:
    """Yield every damage of every file; of a checkpoint's many files half of the damages, in turn."""
    for number, (name, commands) in enumerate(readers(run)):
        damages = list(DAMAGES.items())
        for damage, spoil in damages[number % 2 :: 2] if "/checkpoints/" in name else damages:
            for words in commands:
                yield Case(f"{name}, {damage}: {label(words)}", words, at(name, spoil), refused=False)


def other_json(run: Path) -> Iterator[Case]:
    """Yield JSON files with another value, and each key of theirs repeated or missing."""
    for name, commands in readers(run):
        if name.endswith(".json"):
            for what, text in TEXTS.items():
                spoil = functools.partial(write, text=text)
                yield Case(f"{name}, {what}: {label(commands[0])}", commands[0], at(name, spoil), refused=False)
            spoil = functools.partial(edit_text, edit=lambda text: text.replace("{", '{"phase": "other", ', 1))
            yield Case(f"{name}, a key twice: {label(commands[0])}", commands[0], at(name, spoil), refused=False)


def redone_digests(run: Path) -> Iterator[Case]:
    """Yield files that are broken although the digests of their manifest and index are right."""
    for name, commands in readers(run):
        if name.endswith(("manifest.json", "index.json", "experiment.json")):
            value = json.loads((run / name).read_text())
            for place in places(value):
                if "inputs" in place[:1] and len(place) > 1:
                    continue  # they are compared with the experiment
                for other in (None, [], "x"):
                    if type(other) is type(look_up(value, place)) or place[0] == "digest":
                        continue
                    spoil = functools.partial(edit_json, place=place, other=other, run_name=name)
                    what = f"{'.'.join(map(str, place))} = {json.dumps(other)}, digest redone"
                    yield Case(f"{name}, {what}: {label(commands[0])}", commands[0], spoil, refused=False)
    for name, commands in readers(run):
        if name.endswith((".npy", ".model", ".jsonl", "topk/records-00000.arrayrecord")) or name.startswith(
            "evaluation/"
        ):
            for damage in ("halved", "emptied", "noise"):
                spoil = functools.partial(redo_after, name=name, damage=DAMAGES[damage])
                for words in commands[:2]:
                    # The figures of noise may differ: its digest says that it is right.
                    yield Case(f"{name}, {damage}, digests redone: {label(words)}", words, spoil, refused=False)
    for header in ("(1000000000000,)", "(-1,)", "(3"):
        spoil = functools.partial(
            redo_after, name="data/train.lengths.npy", damage=functools.partial(shape, header=header)
        )
        yield Case(f"data/train.lengths.npy of shape {header}, digests redone: student", STUDENT, spoil)


def places(value: Any, depth: int = 3) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of a JSON value's keys, to a depth."""
    for key, item in value.items() if isinstance(value, dict) else ():
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in places(item, depth - 1))


def look_up(value: Any, place: tuple[Any, ...]) -> Any:
    """Return the value at a path."""
    return functools.reduce(lambda inner, key: inner[key], place, value)


def at(name: str, spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a function that spoils a file of the sandbox's run."""
    return lambda sandbox: spoil(sandbox / "run" / name)


def write(path: Path, text: str) -> None:
    """Replace a file's text."""
    path.write_text(text, errors="surrogateescape")


def edit_text(path: Path, edit: Callable[[str], str]) -> None:
    """Edit a file's text."""
    path.write_text(edit(path.read_text()))


def edit_json(sandbox: Path, place: tuple[Any, ...], other: Any, run_name: str) -> None:
    """Set one value of a JSON file, and redo its digest."""
    path = sandbox / "run" / run_name
    value = json.loads(path.read_text())
    look_up(value, place[:-1])[place[-1]] = other
    write_with_digest(path, value)


def write_with_digest(path: Path, value: Any) -> None:
    """Write a manifest or an index with the digest of its contents."""
    if "digest" in value:
        del value["digest"]
        text = json.dumps(value, sort_keys=path.name == "manifest.json")
        value["digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps(value))


def redo_after(sandbox: Path, name: str, damage: Callable[[Path], object]) -> None:
    """Damage a file, and redo its digest in the manifest or the index beside it."""
    path = sandbox / "run" / name
    damage(path)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    manifest = path.with_name("manifest.json")
    value = json.loads(manifest.read_text())
    if path.name in value["files"]:
        value["files"][path.name] = digest
        write_with_digest(manifest, value)
    if path.suffix == ".arrayrecord":
        index = path.with_name("records.index.json")
        value = json.loads(index.read_text())
        value["shards"][0] = digest
        write_with_digest(index, value)


def shape(path: Path, header: str) -> None:
    """Write an array whose header states another shape."""
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {header}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


def label(words: tuple[str, ...]) -> str:
    """Return a command's name, with its model."""
    return f"{words[0]} teacher" if "--model" in words else words[0]
