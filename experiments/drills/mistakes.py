"""Mistakes: experiment files, command lines, paths and environments as people get them wrong."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from harness import TINY, Case
from spoilt import CACHE, EVALUATE, EXPORT, GENERATE, REPORT, STUDENT

HEAD = "import dataclasses\nimport kd_jax\nfrom kd_jax import *\n"
COPY = f"""{HEAD}replace = dataclasses.replace
tiny = load_experiment({str(TINY)!r})
teacher = tiny.teacher
kd = tiny.students["student_kd"]
def student(**changes): return {{"students": {{"a": replace(kd, **changes)}}, "comparison": None}}
"""
FILES = {
    "an unclosed bracket": "experiment = (\n",
    "an indented line": HEAD + "x = 1\n  y = 2\n",
    "a missing module": "import nope\n",
    "a misspelt class": "from kd_jax import Trainig\n",
    "a misspelt attribute": "import kd_jax\nx = kd_jax.Trainig(steps=1)\n",
    "a misspelt name": HEAD + "x = Trainig(steps=1)\n",
    "a misspelt field": HEAD + "x = Training(stepz=1)\n",
    "a missing field": HEAD + "x = Training()\n",
    "too many fields": HEAD + "x = Comparison('a', 'b', 'c', 'd', 'e')\n",
    "an exception": "1 / 0\n",
    "an exception in a module beside it": "import beside\nbeside.fail()\n",
    "a module beside it with a syntax error": "import broken_beside\n",
    "an exit": "import sys\nsys.exit(0)\n",
    "no experiment": "x = 1\n",
    "experiment is None": "experiment = None\n",
    "experiment is a class": "from kd_jax import Experiment\nexperiment = Experiment\n",
    "experiment is a Training": "from kd_jax import Training\nexperiment = Training(steps=1)\n",
    "endless recursion": "def f(): return f()\nf()\n",
    "an exception that cannot be shown": "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E\n",
    "NUL": "x = 1\0\n",
    "a key that os.environ lacks": "import os\nos.environ['NOPE']\n",
    "a config that loads a missing one": HEAD + "load_experiment('nope.py')\n",
}
FIELDS = {  # replacements of the tiny experiment's fields
    "buckets=32": "buckets=32",
    "buckets=('a',)": "buckets=('a',)",
    "buckets=()": "buckets=()",
    "buckets=None": "buckets=None",
    "students a list": "students=[kd]",
    "students None": "students=None",
    "students a Training": "students={'a': teacher.training}",
    "students with a name of two words": "students={'a b': kd}, comparison=None",
    "students with a number as name": "students={1: kd}, comparison=None",
    "a student of 300 letters": "students={'a' * 300: kd}, comparison=None",
    "source='x'": "source='x'",
    "source a class": "source=Toy",
    "task a source": "task=tiny.source",
    "tokenizer None": "tokenizer=None",
    "teacher a model": "teacher=teacher.model",
    "seed '5'": "seed='5'",
    "seed 2**32": "seed=2**32",
    "seed True": "seed=True",
    "name None": "name=None",
    "comparison a string": "comparison='student_kd'",
    "comparison of a missing student": "comparison=Comparison('nobody', 'student_kd')",
    "evaluation.int8 a string": "evaluation=Evaluation(int8='student_kd')",
    "evaluation.bootstrap 10**12": "evaluation=Evaluation(bootstrap=10**12)",
    "mesh a tuple": "mesh=(1, 1, 1)",
    "terms a list": "teacher=replace(teacher, terms=[Term(cross_entropy)])",
    "terms empty": "teacher=replace(teacher, terms={})",
    "a loss as text": "teacher=replace(teacher, terms={'ce': Term('cross_entropy')})",
    "a loss without its arguments": "teacher=replace(teacher, terms={'ce': Term(abs)})",
    "a lambda as loss": "teacher=replace(teacher, terms={'ce': Term(lambda a, b: a)})",
    "a loss that is called": "teacher=replace(teacher, terms={'ce': Term(cross_entropy())})",
    "weight as text": "teacher=replace(teacher, terms={'ce': Term(cross_entropy, weight='1')})",
    "weight NaN": "teacher=replace(teacher, terms={'ce': Term(cross_entropy, weight=float('nan'))})",
    "a misspelt option of a loss": "teacher=replace(teacher, terms={'ce': Term(cross_entropy, options={'smooth': 1})})",
    "steps as text": "teacher=replace(teacher, training=Training(steps='9'))",
    "steps 1e3": "teacher=replace(teacher, training=Training(steps=1e3))",
    "steps -1": "teacher=replace(teacher, training=Training(steps=-1))",
    "optimizer a string": "teacher=replace(teacher, training=Training(steps=1, optimizer='adam'))",
    "schedule 'linear'": "teacher=replace(teacher, training=Training(steps=9, optimizer=Optimizer(schedule='linear')))",
    "activation 'swish2'": "teacher=replace(teacher, model=replace(teacher.model, activation='swish2'))",
    "heads 0": "teacher=replace(teacher, model=replace(teacher.model, heads=0))",
    "dropout '0.1'": "teacher=replace(teacher, model=replace(teacher.model, dropout='0.1'))",
    "model a string": "teacher=replace(teacher, model='transformer')",
    "model None": "teacher=replace(teacher, model=None)",
    "init a string": "teacher=replace(teacher, init='random')",
    "init a class": "**student(init=FromTeacher)",
    "init of a missing checkpoint": "**student(init=FromCheckpoint('nope'))",
    "init of a missing folder": "teacher=replace(teacher, init=FromHuggingFace('nope'))",
    "a folder with NUL": "teacher=replace(teacher, init=FromHuggingFace('a\\0b'))",
    "signal a string": "**student(terms={'kd': Term(forward_kl, signal='topk')})",
    "files that are missing": "source=Files(train=('nope.jsonl',))",
    "files as one string": "source=Files(train='nope.jsonl')",
    "a file that is a folder": "source=Files(train=('.',))",
    "a file with NUL": "source=Files(train=('a\\0b',))",
}
PATHS = {
    "under a file": "{here}/file/run",
    "a file": "{here}/file",
    "a dangling link": "{here}/dangling",
    "below a dangling link": "{here}/dangling/run",
    "a link to itself": "{here}/loop",
    "in /proc": "/proc/run",
    "in /dev": "/dev/null/run",
    "too long": "{here}/" + "a" * 300,
    "NUL": "{here}/a\0b",
    "a pipe": "{here}/pipe",
    "empty": "",
    "a bucket of nobody": "s4://a/b",
    "a home of nobody": "~nobody_here/run",
}
COMMAND_LINES = """

runn
train
--hlep
run --help-me
run
run {config}
run nope.py --workdir {here}/w
run {here} --workdir {here}/w
run /dev/null --workdir {here}/w
run {config} --workdir
run {config} {config} --workdir {here}/w
run {config} --workdir {here}/w --teacher.training.stepz 5
run {config} --workdir {here}/w --teacher.training 5
run {config} --workdir {here}/w --teacher.training.steps five
run {config} --workdir {here}/w --teacher.training.steps
run {config} --workdir {here}/w --teacher.model.activation swish2
run {config} --workdir {here}/w --buckets a
run {config} --workdir {here}/w --seed 1 2
run {config} --workdir {here}/w --seed 1e3
run {config} --workdir {here}/w --seed 99999999999999999999
run {config} --workdir {here}/w --evaluation.bootstrap 1000000000000
run {config} --workdir {here}/w --students.nobody.training.steps 5
run {config} --workdir {here}/w --backend tpu
run {config} --workdir {here}/w --mesh.data 3
run {config} --workdir {here}/w --processes 0
run {config} --workdir {here}/w --processes 2.5
run {config} --workdir {here}/w --profile 5
run {config} --workdir {here}/w --metrics nope
run {config} --workdir {here}/w --host 3/2
run {config} --workdir {here}/w --host 0/2 --coordinator nowhere
run {config} --workdir {here}/w --beam-runner Nope
run {config} --workdir {here}/w --beam-runner DirectRunner
teacher {config} --workdir {here}/w
student {config} --workdir {here}/w
student {config} --workdir {run} --only nobody
cache {config} --workdir {here}/w
cache {config} --workdir {run} --writer 2/2
evaluate {config} --workdir {here}/w
report {config} --workdir {here}/w
generate --workdir {here}/w
generate --workdir {here}
generate --workdir {run} --model nobody
generate --workdir {run} --beam 0
generate --workdir {run} --beam 1000000
generate --workdir {run} --length -5
generate --workdir {run} --length 1000000000000
generate --workdir {run} --temperature nan
generate --workdir {run} --temperature -1
generate --workdir {run} --top-p 2
generate --workdir {run} --top-k -1
generate --workdir {run} --seed 18446744073709551616
generate --workdir {run} --repetition-penalty 0
generate --workdir {run} word
export --workdir {run}
export --workdir {run} --to {run}
export --workdir {run} --to {here}/x --format onnx
export --workdir {run} --to {here}/x --model nobody
export --workdir {run} --to {here}/x --int8
export --workdir {here} --to {here}/x
plan nope.py
plan {config} --devices 0 --kind h100
plan {config} --devices 8
plan {config} --devices 8 --kind h1000
plan {config} --devices -1
plan {config} --only nobody --devices 8 --kind h100
plan {config} --workdir {here}/file
shrink {config} --workdir {here}/w
ablate {config} --workdir {here}/w
ablate {config} --workdir {here}/w --seeds
ablate {config} --workdir {here}/w --seeds a
ablate {config} --workdir {here}/w --seeds 0 0
ablate {config} --workdir {here}/w --seeds -1
ablate {config} --workdir {here}/w --seeds 0 --metric nope
new
new {here}/c.py
new {here}/c.py --task chess --family decoder_only
new {here}/file/c.py --task translation --family encoder_decoder --train {here}/train.jsonl
new {here}/file --task translation --family encoder_decoder --train {here}/train.jsonl
new {here}/c.py --task translation --family encoder_decoder --train {here}/file
new {here}/c.py --task translation --family encoder_decoder --train {here}
import-logprobs --workdir {run} --format vllm --temperature 1 --mode raw
import-logprobs nope.jsonl --workdir {run} --format vllm --temperature 1 --mode raw
import-logprobs {here} --workdir {run} --format vllm --temperature 1 --mode raw
import-logprobs {here}/file --workdir {run} --format gguf --temperature 1 --mode raw
import-logprobs {here}/file --workdir {run} --format vllm --temperature 0 --mode raw
import-logprobs {here}/file --workdir {run} --format vllm --temperature x --mode raw
"""
RUN, PLAN = ("run", "{config}", "--workdir"), ("plan", "{config}", "--workdir")
GENERATION, NOBODY, BOTH = ("generate",), (), ("generate", "report")
ENVIRONMENTS: list[tuple[str, dict[str, str | None], str, tuple[str, ...]]] = [
    # name, variables, redirection, commands that must refuse
    ("standard input closed", {}, "<&-", GENERATION),
    ("standard output closed", {}, ">&-", GENERATION),
    ("standard output full", {}, ">/dev/full", BOTH),
    ("PYTHONIOENCODING=ascii", {"PYTHONIOENCODING": "ascii"}, "", NOBODY),
    ("LANG=C", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "", NOBODY),
    ("LC_ALL of nowhere", {"LC_ALL": "xx_XX.UTF-8"}, "", NOBODY),
    ("COLUMNS=1", {"COLUMNS": "1"}, "", NOBODY),
    ("COLUMNS=x", {"COLUMNS": "x"}, "", NOBODY),
    ("TERM of nowhere", {"TERM": "nope"}, "", NOBODY),
    ("no HOME", {"HOME": None, "KD_JAX_CACHE": None}, "", NOBODY),
    ("HOME a file", {"HOME": "/dev/null", "KD_JAX_CACHE": None}, "", NOBODY),
    ("HOME read-only", {"HOME": "/proc", "KD_JAX_CACHE": None}, "", NOBODY),
    ("TMPDIR missing", {"TMPDIR": "/nope"}, "", NOBODY),
    ("KD_JAX_CACHE in /proc", {"KD_JAX_CACHE": "/proc/nope"}, "", NOBODY),
    ("KD_JAX_CACHE empty", {"KD_JAX_CACHE": ""}, "", NOBODY),
    ("JAX_PLATFORMS=cuda", {"JAX_PLATFORMS": "cuda"}, "", GENERATION),
    ("JAX_PLATFORMS=nope", {"JAX_PLATFORMS": "nope"}, "", GENERATION),
    ("JAX_PLATFORMS empty", {"JAX_PLATFORMS": ""}, "", NOBODY),
]


def cases(run: Path) -> list[Case]:
    """Return the cases."""
    return [*experiment_files(), *paths(), *command_lines(), *environments(), *read_only()]


def experiment_files() -> Iterator[Case]:
    """Yield experiment files with a mistake."""
    files = FILES | {name: f"{COPY}experiment = replace(tiny, {field})\n" for name, field in FIELDS.items()}
    for name, text in files.items():
        words = ("run", "{here}/mine.py", "--workdir", "{here}/w")
        yield Case(f"experiment file: {name}", words, functools.partial(write_file, text=text))


def paths() -> Iterator[Case]:
    """Yield paths that cannot be used, as a workdir, as a folder to export to, and as an experiment file."""
    for name, path in PATHS.items():
        for words in (RUN, GENERATE[:2], REPORT[:3], PLAN, EXPORT[:4], ("run", "--workdir", "{here}/w")):
            if words is not PLAN or path:  # without a workdir `plan` reads the source
                yield Case(f"{' '.join(words[:3])} {name}", (*words, path), odd_files)


def command_lines() -> Iterator[Case]:
    """Yield command lines with a mistake."""
    for line in COMMAND_LINES.strip("\n").split("\n"):
        yield Case(f"command line: {line}", tuple(line.split()) or ("",), odd_files)


def environments() -> Iterator[Case]:
    """Yield environments of a process: variables, streams and limits."""
    for name, variables, redirection, refusing in ENVIRONMENTS:
        for words in (GENERATE, REPORT):
            refused = words[0] in refusing
            yield Case(f"{name}: {words[0]}", words, refused=refused, environment=variables, redirection=redirection)


def read_only() -> Iterator[Case]:
    """Yield workdirs that cannot be written; the superuser can write them, so nothing may change for it."""
    for words in (GENERATE, REPORT, EVALUATE, STUDENT, CACHE, EXPORT):
        yield Case(f"a workdir without write permission: {words[0]}", words, forbid, refused=False)


def write_file(sandbox: Path, text: str) -> None:
    """Write an experiment file, and modules beside it."""
    (sandbox / "mine.py").write_text(text)
    (sandbox / "beside.py").write_text("def fail():\n    return [][1]\n")
    (sandbox / "broken_beside.py").write_text("def f(:\n")


def odd_files(sandbox: Path) -> None:
    """Make a file, links and a pipe to be used as folders."""
    (sandbox / "file").write_text("text")
    (sandbox / "train.jsonl").write_text('{"en": "a", "fr": "b"}\n')
    (sandbox / "dangling").symlink_to(sandbox / "nothing")
    (sandbox / "loop").symlink_to(sandbox / "loop")
    os.mkfifo(sandbox / "pipe")


def forbid(sandbox: Path) -> None:
    """Take away the permission to write."""
    for path in [sandbox / "run", *(sandbox / "run").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
