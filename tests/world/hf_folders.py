"""Folders in Hugging Face's layout as transformers reads them: the reference of the tests beside this file."""

import json

import jax
import numpy as np

from kd_jax.errors import KdError
from kd_jax.models.huggingface.read import read_model
from tests.models.huggingface.cases import V, hf  # noqa: F401
from tests.models.huggingface.test_parity import inputs_of, logits_of, rows

TOLERANCE = 1e-4


def network_class(config):
    """Return transformers' class of a config.json."""
    return getattr(hf, config["architectures"][0])


def their_logits(folder, config, examples):
    """Return the logits of transformers, or the error with which it refuses the folder.

    Tensors that are missing, and filled with random numbers, are an error too.
    """
    try:
        network, info = network_class(config).from_pretrained(folder, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
            return ValueError(info)
        return logits_of(network.eval(), *examples)
    except Exception as error:
        return error


def our_logits(folder, examples):
    """Return our logits, or the KdError with which we refuse the folder; any other error fails the test."""
    try:
        model, params = read_model(folder)
        built = model.build(V)
        params = jax.tree.map(jax.numpy.asarray, params)
        return np.asarray(built.head(params).logits(built.apply(params, inputs_of(*examples), None)))
    except KdError as error:
        return error


def examples_of(config):
    """Return rows of (decoder, encoder), padded on the right."""
    is_encoder_decoder = config.get("is_encoder_decoder", False) is True
    return rows(0, left=False), rows(1, left=False) if is_encoder_decoder else None


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
