"""A workdir of a stranger: damaged or malicious files end in an error of one line, and nothing outside is read."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.pipeline import Split
from kd_jax.batches.store import Store
from kd_jax.errors import KdError
from kd_jax.phases.workdirs import read_experiment, write_experiment
from kd_jax.tokenizers import base as tokenizers
from kd_jax.training.model import load_trained
from tests.helpers.runs import run_until_cache, smoke

TRAINING = "--teacher.training"
SHORT = f"{TRAINING}.steps 4 {TRAINING}.eval-every 4 {TRAINING}.optimizer.warmup 2".split()


@pytest.fixture(scope="module")
def workdir(root, lax_promotion, tmp_path_factory):
    experiment = smoke(root, SHORT)
    workdir = run_until_cache(experiment, tmp_path_factory.mktemp("foreign"))
    write_experiment(workdir, experiment)
    return workdir


def read(workdir):
    """Read all files that generate, export, report and a student read."""
    experiment = read_experiment(workdir)
    tokenizers.load(experiment.tokenizer, workdir.data)
    split = Split(workdir.data, "train", {"topk": Store(workdir.cache("", "topk").path, "records")})
    for i in range(len(split)):
        split.read(i)
    load_trained(experiment, workdir, TEACHER)


FILES = ("experiment.json", "data/manifest.json", "data/tokenizer.model", "data/train.index.json")
FILES += ("data/train.lengths.npy", "data/train-00000.arrayrecord", "cache/topk/records.index.json")
FILES += ("cache/topk/records-00000.arrayrecord", "teacher/manifest.json")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_refused_or_harmless(workdir, tmp_path, data):
    name = data.draw(st.sampled_from(FILES))
    path, copy = workdir.path / name, tmp_path / "copy"
    shutil.copy(path, copy)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    way = data.draw(st.sampled_from(["cut", "flip", "fill"]))
    changed = {
        "cut": whole[:place],
        "flip": whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :],
        "fill": whole[:place] + data.draw(st.binary(max_size=40)) + whole[place + 40 :],
    }[way]
    try:
        path.write_bytes(changed)
        read(workdir)
    except KdError as error:
        assert "\n" not in str(error)
    finally:
        shutil.copy(copy, path)


VALUES = [
    None,
    -1,
    0,
    2**70,
    1e308,
    "",
    "../../x",
    [],
    {},
    [[]],
    {"class": "os.system", "fields": {}},
    "kd_jax.cli.main.entry",
]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_experiment_with_changed_values_is_refused_or_valid(workdir, tmp_path, data):
    """Replace any value of experiment.json, at any depth, by any other."""
    whole = workdir.config.read_text()
    parsed = node = json.loads(whole)
    for _ in range(data.draw(st.integers(0, 12))):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(st.sampled_from(VALUES))
    try:
        workdir.config.write_text(json.dumps(parsed))
        read_experiment(workdir)
    except KdError as error:
        assert "\n" not in str(error)
    finally:
        workdir.config.write_text(whole)


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", "a/b", "", ".", "a\0b"])
def test_no_name_leads_out_of_a_workdir(tmp_path, name):
    workdir = Workdir(tmp_path)
    with pytest.raises(KdError, match="expected a folder's name without slashes"):
        workdir.model(name)
    with pytest.raises(KdError, match="expected a folder's name without slashes"):
        workdir.cache("", name)
    if name:
        with pytest.raises(KdError, match="expected a folder's name without slashes"):
            workdir.split(name)
