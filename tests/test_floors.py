"""The house: who imports whom, where devices and files may be named, how long things may be."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # from the top down; a file imports from lower wings alone
    "__main__",
    "cli",
    "phases",
    "evaluation",
    "training",
    "teaching",
    "decoding",
    "experiment",
    "objective",
    "signals",
    "losses",
    "models",
    "optim",
    "data",
    "tasks",
    "parallel",
    "artifacts",
    "hosts",
    "config",
    "types",
    "errors",
]
FILES = sorted((ROOT / "kd_jax").rglob("*.py"))
# Here a file imports of its own wing the `base` alone; in the other wings whatever does not go in a circle.
APART = {"signals", "losses", "tasks", "artifacts"}
OWNERS = {  # a library -> the only files that import it
    "orbax": r"artifacts/checkpoint\.py",
    "etils|fsspec": r"artifacts/files\.py",
    "rich": r"artifacts/runlog\.py",
    "tyro": r"cli/resolve\.py",
    "grain|tensorflow_datasets|array_record|sentencepiece|tokenizers": r"data/.*",
    "apache_beam": r"data/beam\.py",
    "jinja2": r"data/tokenizers/chat\.py",
    "safetensors": r"models/huggingface/files\.py",
    "google": r"data/logprobs/maxtext\.py",
    "pyarrow|yaml": r"data/logprobs/distillkit\.py",
    "qwix": r"models/int8\.py",
    "tensorboard|wandb|mlflow": r"artifacts/writers\.py",
    "torch|transformers": r"nowhere",
    "flax": r"models/.*",
}


def imports(path: Path) -> list[str]:
    """Full names of what a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def modules() -> dict[str, list[str]]:
    """Every module of the project -> those of the project that it imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    return {name: [one for one in imports(path) if one in names and one != name] for name, path in names.items()}


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_imports_go_down():
    for module, imported in modules().items():
        if module == "kd_jax":  # the face, which loads lazily
            continue
        for other in imported:
            if other == "kd_jax" or wing(other) == wing(module):
                continue
            assert FLOORS.index(wing(module)) < FLOORS.index(wing(other)) or {module, other} == {
                "kd_jax.types",
                "kd_jax.errors",
            }, f"{module} imports {other}"


def test_no_wing_goes_in_a_circle():
    graph = modules()
    for name in {wing(module) for module in graph}:
        inside = {module: [o for o in graph[module] if wing(o) == name] for module in graph if wing(module) == name}
        graphlib.TopologicalSorter(inside).prepare()  # raises on a circle
        if name in APART:
            for module, others in inside.items():
                bases = {f"kd_jax.{name}.base", f"kd_jax.{name}", "kd_jax.tasks.metrics"}
                below = ("digests", "files", "lease", "manifest", "mirror", "preemption", "runlog")
                bases |= {f"kd_jax.artifacts.{file}" for file in below}
                assert not set(others) - bases, f"{module} imports {others}"


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_have_one_owner(library):
    for path in FILES:
        if any(re.fullmatch(library, name.split(".")[0]) for name in imports(path)):
            assert re.fullmatch(OWNERS[library], path.relative_to(ROOT / "kd_jax").as_posix()), path


DEVICES = (
    r"jax\.(devices|local_device|device_count|process_)|pmap|shard_map|NamedSharding|PartitionSpec|make_mesh|axis_name"
)
PURE = [  # the loader is no part of the house: it is copied beside exported programs
    p
    for p in FILES
    if re.search(r"/(losses|signals|models|objective|decoding|optim)/|/(step|closeness|layouts)\.py", str(p))
    and p.name != "loader.py"
]
BEAM = "        except Exception as error:  # Beam raises whatever its runners raise"
ORBAX = "        except Exception as error:  # orbax raises whatever its parts raise, a plain Exception among them"


# A config.json of somebody else's may lack a key.
OURS = [path for path in FILES if path.parent.name != "huggingface"]


@pytest.mark.parametrize(
    "pattern, files",
    [
        (DEVICES + r"|lax\.p(sum|mean)", [p for p in FILES if p.parent.name != "parallel"]),
        (r"\bopen\(|epath|orbax|array_record|grain|logging|print\(", PURE),
        (r"hasattr|getattr\(|except Exception|except:|[Rr]egistry|(cfg|config|c)\.get\(", OURS),
        (
            r"(ids|tokens|labels|targets)\w* *([!=]=|>=?)|pad_id|\.mean\(|jnp\.mean|pmean|MultiSteps",
            [p for p in PURE if re.search(r"/(losses|signals|objective)/|/step\.py", str(p))],
        ),
    ],
    ids=["devices", "files", "absence", "masks and means"],
)
def test_what_stands_nowhere_else(pattern, files):
    lines = [(path, line) for path in files for line in path.read_text().split("\n") if line not in (ORBAX, BEAM)]
    lines = [(path, line) for path, line in lines if not line.strip().startswith((">>> ", "... "))]  # examples
    assert not [f"{path}: {line}" for path, line in lines if re.search(pattern, line)]


def test_sizes():
    for path in FILES:
        assert len(path.read_text().split("\n")) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
