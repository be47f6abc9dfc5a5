"""A stranger's workdir with links: nothing outside it is read, emptied or written, and the link is named.

The right value is the victim's own bytes, and its time of modification.
"""

import os
import shutil
import socket

import pytest

import kd_jax
from kd_jax.artifacts.workdir import Workdir
from kd_jax.cli.main import main
from kd_jax.errors import KdError

SMOKE = "experiments/configs/smoke.py"
SECRET = b"the user's own file\n"
LINKS = (
    ".kd_jax.lock",
    "experiment.json",
    "data",
    "data/manifest.json",
    "teacher/metrics.jsonl",
    "teacher/checkpoints",
    "students",
    "students/student_kd",
    "evaluation/teacher.json",
    "report/report.html",
    "metrics",
)
COMMANDS = (["prepare"], ["teacher", "--force"], ["report"], ["evaluate", "--force"], ["generate"], ["plan"])


def words(command, root, workdir):
    config = [] if command[0] == "generate" else [str(root / SMOKE)]
    return [*command, *config, "--workdir", str(workdir)]


@pytest.fixture
def victim(tmp_path):
    """A folder outside the workdir, with a file; links lead to the one or the other."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_bytes(SECRET)
    return folder


def state(folder):
    return {str(path): (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in folder.rglob("*")}


def put_link(path, target):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("where", ["file", ".", pytest.param("nothing", marks=pytest.mark.extended)])
def test_a_link_out_of_a_workdir_is_refused(smoke_copy, root, victim, capsys, name, where):
    put_link(smoke_copy / name, victim / where)
    before = state(victim)
    for command in COMMANDS if (name, where) in ((".kd_jax.lock", "file"), ("students", ".")) else COMMANDS[2:5:2]:
        assert main(words(command, root, smoke_copy)) == 2
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert error.startswith(f"error: {smoke_copy / name}: expected a file or folder of the workdir, got a link")
        assert state(victim) == before
    with pytest.raises(KdError, match="got a link out of it"):
        kd_jax.load_model(smoke_copy, "student_kd")


@pytest.mark.parametrize("name", LINKS)
def test_a_new_workdir_writes_nothing_through_a_link(root, victim, tmp_path, capsys, name):
    path = tmp_path / "w" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(victim / "file" if "." in path.name else victim)
    before = state(victim)
    assert main(["run", str(root / SMOKE), "--workdir", str(tmp_path / "w")]) == 2
    assert f"{path}: expected a file or folder of the workdir" in capsys.readouterr().err
    assert state(victim) == before


def test_a_lock_that_is_a_link_is_never_opened(victim, tmp_path):
    """Also without the look at the whole folder, and for a link within the workdir."""
    for target in (victim / "file", tmp_path / "w" / "experiment.json"):
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / "experiment.json").write_bytes(SECRET)
        put_link(tmp_path / "w" / ".kd_jax.lock", target)
        with (
            pytest.raises(KdError, match=r"\.kd_jax\.lock: expected a file of kd_jax, got a link"),
            Workdir(tmp_path / "w").lock(),
        ):
            pass
        assert target.read_bytes() == SECRET


def test_the_workdir_itself_may_be_a_link_and_links_within_it_are_followed(smoke_copy, root, tmp_path, capsys):
    (tmp_path / "named").symlink_to(smoke_copy)
    (smoke_copy / "metrics").mkdir()
    (smoke_copy / "metrics" / "latest-run").symlink_to(smoke_copy / "report")  # as Weights & Biases leaves one
    assert main(["report", str(root / SMOKE), "--workdir", str(tmp_path / "named")]) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_neither_file_nor_folder_is_refused(root, tmp_path, monkeypatch, capsys, kind):
    """Opening a pipe would wait for its other end for ever."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    (tmp_path / "w").mkdir()
    if kind == "pipe":
        os.mkfifo("w/experiment.json")
    else:
        socket.socket(socket.AF_UNIX).bind("w/experiment.json")
    assert main(["report", str(root / SMOKE), "--workdir", "w"]) == 2
    assert "w/experiment.json: expected a file or a folder, got a pipe, socket or device" in capsys.readouterr().err
