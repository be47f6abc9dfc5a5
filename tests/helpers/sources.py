"""Files of text, and checks of a source's settings."""

import json
from pathlib import Path

import pytest

from kd_jax import config
from kd_jax.errors import KdError
from kd_jax.sources.base import Source


def write(path: Path, text: str | bytes) -> str:
    """Write a file and return its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def assert_check_raises(source: Source, message: str) -> None:
    """Assert that `check` raises an error that begins with this pattern."""
    with pytest.raises(KdError, match=f"^{message}"):
        source.check()


def assert_round_trip(source: Source) -> None:
    """Assert that a source is valid and that a workdir can store it."""
    source.check()
    assert config.from_data(json.loads(json.dumps(config.to_data(source)))) == source
