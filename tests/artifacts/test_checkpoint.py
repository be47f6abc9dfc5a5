"""Checkpoints: damage of any file is detected."""

import shutil

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from kd_jax.artifacts.checkpoint import Checkpoints, DamagedCheckpoint, quarantine_unreadable
from kd_jax.training.step import init_state

POSITION = {"next": 7}


def state_at(step):
    params = {"w": jax.random.normal(jax.random.key(step), (40, 30)), "b": jnp.arange(5, dtype=jnp.bfloat16)}
    return init_state(jax.random.key(1), params, optax.trace(decay=0.9))._replace(step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 4 (the best) and 6, which was not evaluated."""
    path = tmp_path_factory.mktemp("saved")
    with Checkpoints(path) as checkpoints:
        checkpoints.save(state_at(4), POSITION, 2.0)
        checkpoints.save(state_at(6), POSITION, None)
    return path


def test_step_without_evaluation_is_the_latest_and_never_the_best(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 4)
        state, position = checkpoints.restore(state_at(0))
        chex.assert_trees_all_equal(state, state_at(6))
        assert position == POSITION
        chex.assert_trees_all_equal(checkpoints.best_params(state_at(0).params), state_at(4).params)


def test_step_is_saved_again_with_a_later_evaluation(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state_at(6), POSITION, 1.0)
        checkpoints.wait()
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (6, 6)


@pytest.mark.parametrize("damage", ["cut", "flip", "lose"])
def test_damage_is_detected_or_harmless(saved, tmp_path, damage):
    detected = []
    files = [path for path in sorted((saved / "checkpoints/6").rglob("*")) if path.is_file()]
    for number, original in enumerate(files):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        path = run / original.relative_to(saved)
        if damage == "lose":
            path.unlink()
        else:
            data, half = path.read_bytes(), path.stat().st_size // 2
            flipped = data[:half] + bytes([data[half] ^ 16]) + data[half + 1 :] if data else data
            path.write_bytes(data[:half] if damage == "cut" else flipped)
        quarantined = quarantine_unreadable(run)
        detected += [path.name for _ in quarantined]
        assert all(folder == run / "damaged_checkpoints/6" and folder.is_dir() for folder in quarantined)
        with Checkpoints(run) as checkpoints:
            if checkpoints.latest_step() == 4:  # orbax itself may not take it for a checkpoint
                continue
            try:
                state, position = checkpoints.restore(state_at(0))
            except DamagedCheckpoint as error:
                assert str(run / "checkpoints/6") in str(error)
                detected.append(path.name)
                assert checkpoints.quarantine(6) == run / "damaged_checkpoints/6" and checkpoints.latest_step() == 4
                state, position = checkpoints.restore(state_at(0))
                chex.assert_trees_all_equal(state, state_at(4))
            else:
                chex.assert_trees_all_equal(state, state_at(6))
                assert position == POSITION
    assert {"metadata", "metrics"} <= set(detected) if damage == "cut" else len(detected) > 4, detected


def test_quarantine_keeps_earlier_ones(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        first = checkpoints.quarantine(6)
        checkpoints.save(state_at(6), POSITION, 1.0)
        checkpoints.wait()
        second = checkpoints.quarantine(6)
        assert [first.name, second.name, checkpoints.latest_step()] == ["6", "6.1", 4] and first.is_dir()
