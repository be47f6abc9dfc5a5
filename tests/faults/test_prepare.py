"""`prepare` by two processes, killed and asked to stop: the same files, and nobody is left behind."""

import os
import signal
import time
from pathlib import Path

from tests.faults.pipeline import start
from tests.helpers.runs import file_digests, write_corpus

CONFIG = """
import dataclasses
from kd_jax import Files, SentencePiece, load_experiment
source, tokenizer = Files(train=({train!r},)), SentencePiece(100, sample=20_000)
experiment = dataclasses.replace(load_experiment({smoke!r}), source=source, tokenizer=tokenizer)
"""
PATIENCE = 300  # seconds, on a busy machine


def wait_for(condition):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + PATIENCE
        time.sleep(0.01)


def writers_to(log):
    """Processes whose standard error is that file."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            found += [link.parts[2]] if os.readlink(link) == str(log) else []
        except OSError:  # it has just ended
            continue
    return found


def test_killed_and_asked_to_stop(root, tmp_path):
    train, config, log = tmp_path / "train.jsonl", tmp_path / "config.py", tmp_path / "log"
    write_corpus(train, 40_000)  # ten shards
    config.write_text(CONFIG.format(train=str(train), smoke=str(root / "experiments/configs/smoke.py")))
    command, data = ["prepare", str(config), "--workdir"], tmp_path / "stopped/data"
    for wanted, number in ((1, signal.SIGKILL), (4, signal.SIGTERM)):
        process = start([*command, str(tmp_path / "stopped"), "--processes", "2"], log)
        wait_for(lambda wanted=wanted: len(list(data.glob("train-*.parts.npy"))) >= wanted)
        os.kill(process.pid, number)
        process.join(PATIENCE)
        assert process.exitcode == (-number if number == signal.SIGKILL else 0)
        wait_for(lambda: not writers_to(log))
        assert not (data / "manifest.json").exists()
    assert "stopped by SIGTERM; the same command resumes the run" in log.read_text()
    for name, options in (("stopped", ["--processes", "2"]), ("whole", [])):
        process = start([*command, str(tmp_path / name), *options], log)
        process.join(PATIENCE)
        assert process.exitcode == 0, log.read_text()
    assert file_digests(data) == file_digests(tmp_path / "whole/data")
