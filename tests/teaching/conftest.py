"""One trained teacher for each file of tests."""

import pytest

from tests.helpers.runs import smoke, taught

SHORT = """
--evaluation.cached-k 12 --buckets 36
--teacher.training.steps 12 --teacher.training.eval-every 12 --teacher.training.optimizer.warmup 2
--students.student_kd.training.steps 6 --students.student_kd.training.eval-every 3
--students.student_kd.training.optimizer.warmup 2
"""


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """The smoke experiment, shortened."""
    return smoke(root, SHORT.split())


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    """Its run, as far as the cache."""
    return taught(experiment, tmp_path_factory.mktemp("run"))
