"""The formats of stored log-probabilities, by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kd_jax.teaching.imported.readers import distillkit, maxtext, sglang, vllm
from kd_jax.teaching.imported.readers.base import LogprobRecord


class Format(NamedTuple):
    """A format of files: the reader, and whether they hold log-probabilities (else logits without their log Z)."""

    read: Callable[[Path], Iterator[LogprobRecord]]
    normalised: bool


FORMATS = {
    "vllm": Format(vllm.read, normalised=True),
    "sglang": Format(sglang.read, normalised=True),
    "distillkit": Format(distillkit.read, normalised=True),
    "maxtext": Format(maxtext.read, normalised=False),
}
