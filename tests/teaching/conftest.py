"""One trained teacher for each test file."""

import pytest

from tests.helpers.runs import run_until_cache, smoke

SHORT = """
--evaluation.cached-k 12 --buckets 36
--teacher.training.steps 12 --teacher.training.eval-every 12 --teacher.training.optimizer.warmup 2
--students.student_kd.training.steps 6 --students.student_kd.training.eval-every 3
--students.student_kd.training.optimizer.warmup 2
"""


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """Return the smoke experiment with fewer steps."""
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    """Return its workdir, up to the cache."""
    return run_until_cache(experiment, tmp_path_factory.mktemp("run"))
