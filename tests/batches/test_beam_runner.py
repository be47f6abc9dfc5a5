"""Apache Beam's workers: errors of the function, and of the runner."""

import pytest

from kd_jax.batches.beam_runner import BeamRunner
from kd_jax.errors import KdError

pytest.importorskip("apache_beam")


def reject(shared, item):
    """Return the item; raise at the item `shared`."""
    if item == shared:
        raise KdError(f"example {item} is rejected")
    return item


@pytest.mark.parametrize("options", ["", "--direct_num_workers=2 --direct_running_mode=multi_processing"])
def test_error_of_the_function_is_raised_and_files_are_removed(options, tmp_path):
    beam = BeamRunner("DirectRunner", options, tmp_path / "b")
    with pytest.raises(KdError, match="^example 3 is rejected$"), beam.start(3) as parallel_map:
        list(parallel_map(reject, range(5)))
    assert not (tmp_path / "b").exists()


def test_unknown_runner_is_an_error(tmp_path):
    with pytest.raises(KdError, match="^--beam-runner NoSuch: "):
        BeamRunner("NoSuch", "", tmp_path).check()
