"""The house: who imports whom, where devices and files may be named, how long things may be."""

import ast
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
    "data",
    "tasks",
    "optim",
    "models",
    "parallel",
    "artifacts",
    "config",
    "types",
    "errors",
]
FILES = sorted((ROOT / "kd_jax").rglob("*.py"))
SIBLINGS = {"models", "data", "objective"}
OWNERS = {  # a library -> the only files that import it
    "orbax": r"checkpoint\.py",
    "rich": r"runlog\.py",
    "tyro": r"setup\.py",
    "grain|tensorflow_datasets|array_record|sentencepiece": r"data/.*",
    "flax": r"models/.*",
}


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if module in names)


def imports(path: Path) -> list[str]:
    """Full names of what a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=lambda p: p.name)
def test_imports_go_down(path):
    here = path.relative_to(ROOT / "kd_jax").with_suffix("").parts
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "kd_jax" or len(parts) < 2:
            continue
        if parts[1] == here[0]:
            assert here[0] in SIBLINGS or parts[2:3] == ["base"], f"{path.name} imports its sibling {name}"
        else:
            assert floor(here[0]) < floor(parts[1]) or {here[0], parts[1]} == {"types", "errors"}, (
                f"{path.name}: {name}"
            )


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_have_one_owner(library):
    for path in FILES:
        if any(re.fullmatch(library, name.split(".")[0]) for name in imports(path)):
            assert re.fullmatch(OWNERS[library], path.relative_to(ROOT / "kd_jax").as_posix()), path


DEVICES = (
    r"jax\.(devices|local_device|device_count|process_)|pmap|shard_map|NamedSharding|PartitionSpec|make_mesh|axis_name"
)
PURE = [
    p for p in FILES if re.search(r"(losses|signals|models)/|/(step|objective|fused_head|decode|metrics)\.py", str(p))
]


@pytest.mark.parametrize(
    "pattern, files",
    [
        (DEVICES + r"|lax\.p(sum|mean)", [p for p in FILES if p.name != "parallel.py"]),
        (r"\bopen\(|epath|orbax|array_record|grain|logging|print\(", PURE),
        (r"hasattr|getattr\(|except Exception|except:|[Rr]egistry|(cfg|config|c)\.get\(", FILES),
        (
            r"(ids|tokens|labels|targets)\w* *([!=]=|>=?)|pad_id|\.mean\(|jnp\.mean|pmean|MultiSteps",
            [p for p in PURE if re.search(r"losses|signals|step|objective|metrics", str(p))],
        ),
    ],
    ids=["devices", "files", "absence", "masks and means"],
)
def test_what_stands_nowhere_else(pattern, files):
    found = [f"{p}: {line}" for p in files for line in p.read_text().split("\n") if re.search(pattern, line)]
    assert not found


def test_sizes():
    for path in FILES:
        assert len(path.read_text().split("\n")) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"
