"""A file of each format with the same sequence twice, and the records that its reader yields."""

import numpy as np

from kd_jax.teaching.imported.readers.base import check_record
from kd_jax.teaching.imported.readers.formats import FORMATS
from tests.teaching.imported.readers import writers

V, K = 60, 16
LOGITS = np.random.default_rng(0).normal(size=(5, V)) * 3
LOGP = (LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))).astype(np.float32)
TOKENS = [1, 17, 40, 5, 2]
FILES = {
    "vllm": lambda path: writers.lines(path, [writers.vllm_response(TOKENS, LOGP, K)] * 2),
    "flat": lambda path: writers.lines(path, [writers.vllm_flat(TOKENS, LOGP, K)] * 2),
    "sglang": lambda path: writers.lines(path, [writers.sglang_response(TOKENS, LOGP, K)] * 2),
    "distillkit": lambda path: writers.distillkit(path, [(TOKENS, LOGP)] * 2),
    "maxtext": lambda path: writers.maxtext(path, [(TOKENS, LOGP)] * 2, K),
}


def records(name, path):
    """Return the records of a file, each checked."""
    form = FORMATS["vllm" if name == "flat" else name]
    read = list(form.read(path))
    for record in read:
        check_record(record, V, form.normalised, 1e-2)
    return read
