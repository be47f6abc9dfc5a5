"""config.json as people have it: each key absent, null or of another type, and published files."""

import copy
import dataclasses
import math

import pytest

from kd_jax.errors import KdError
from kd_jax.models.huggingface.base import parameter_shapes
from kd_jax.models.huggingface.formats import FORMATS
from kd_jax.models.huggingface.read import read_architecture

pytest.importorskip("transformers")

import numpy as np  # noqa: E402

from tests.models.huggingface.cases import MODELS, hf, save_random, torch  # noqa: E402
from tests.models.huggingface.test_parity import logits_of  # noqa: E402
from tests.world import published_configs as published  # noqa: E402
from tests.world.hf_folders import (  # noqa: E402
    TOLERANCE,
    examples_of,
    our_logits,
    read_config,
    their_logits,
    write_config,
)

CASES = [name for name in MODELS if name not in ("llama_linear", "t5_gated")]
QUICK = ("llama", "m2m100", "t5")
NOT_A_SETTING = {"model_type", "architectures"}  # they say which model it is


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.extended) for name in CASES],
)
def case(request, tmp_path_factory):
    """Return (folder, contents of its config.json, our architecture, transformers' logits)."""
    folder = tmp_path_factory.mktemp(request.param)
    network = save_random(request.param, folder)
    config = read_config(folder)
    return folder, config, read_architecture(folder), logits_of(network, *examples_of(config))


def keys_of(config):
    """Return the keys of the file and of transformers' class that may matter to a network."""
    return sorted({*config, *FORMATS[config["model_type"]].defaults} - NOT_A_SETTING)


def parsed_by_transformers(config):
    """Return every value of transformers' config class, or None if it refuses the file."""
    try:
        return hf.AutoConfig.for_model(**copy.deepcopy(config)).to_dict()  # it merges dictionaries in place
    except Exception:
        return None


def check_change(case, changed, key):
    """Check that a changed file is the model that it is in transformers, or that a KdError names the key.

    If transformers refuses what we read, it must be the model of the unchanged file: the network does not need the key.
    Logits are computed only where transformers' values or ours changed.
    """
    folder, config, architecture, expected = case
    names = (key, FORMATS[config["model_type"]].aliases.get(key, key))
    write_config(folder, changed)
    try:
        theirs = parsed_by_transformers(changed)
        if read_architecture(folder) == architecture and theirs in (None, parsed_by_transformers(config)):
            return
        logits = our_logits(folder, examples_of(config))
        if isinstance(logits, KdError):
            raise logits
        reference = their_logits(folder, config, examples_of(config))
        real_BT = examples_of(config)[0][1]
        reference = expected if isinstance(reference, Exception) else reference
        np.testing.assert_allclose(logits[real_BT], reference[real_BT], atol=TOLERANCE, err_msg=key)
    except KdError as error:
        assert any(name in str(error) for name in names) and "\n" not in str(error), (key, changed.get(key), error)
    finally:
        write_config(folder, config)


def test_an_absent_key_has_transformers_default(case):
    config = case[1]
    for key in keys_of(config):
        check_change(case, {k: v for k, v in config.items() if k != key}, key)


def test_a_null_is_what_it_is_in_transformers(case):
    config = case[1]
    for key in keys_of(config):
        check_change(case, config | {key: None}, key)


def test_a_value_of_another_type_is_named_or_changes_nothing(case):
    config = case[1]
    model_format = FORMATS[config["model_type"]]
    for key in [*model_format.defaults, *model_format.aliases, "rope_scaling", "rope_parameters", "layer_types"]:
        for value in ("x", [1], {"x": {}}, -1, 10**30, float("nan")):
            check_change(case, config | {key: value}, key)


OLD_ROPES = {  # keys as transformers 4 writes them -> what transformers 5 reads
    "theta": {"rope_theta": 5000.0},
    "linear": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "null": {"rope_scaling": None},
    "scaling first": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_theta": 99.0}},
    "dictionary first": {"rope_theta": 5000.0, "rope_parameters": {"rope_theta": 99.0}},
    "without factor": {"rope_scaling": {"type": "linear"}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "longrope": {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
    "nested": {"rope_parameters": {"full_attention": {"rope_theta": 99.0}}},
    "partial": {"partial_rotary_factor": 0.5},
}
REFUSED_ROPES = {
    "without factor": "rope_scaling.factor: expected a number above 0 and below 1e12, got None",
    "longrope": "rope_scaling.type: expected 'default' or 'linear' or 'llama3' or 'yarn' or 'dynamic', got 'longrope'",
    "nested": "rope_parameters.full_attention: expected a number or text, got an object",
    "partial": "partial_rotary_factor: expected 1, got 0.5",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_random("llama", folder)
    return folder, read_config(folder)


@pytest.mark.parametrize("name", OLD_ROPES)
def test_rotary_angles_as_transformers_4_and_5_write_them(llama, name):
    folder, config = llama
    write_config(folder, {k: v for k, v in config.items() if k != "rope_parameters"} | OLD_ROPES[name])
    logits = our_logits(folder, examples_of(config))
    if name in REFUSED_ROPES:
        assert REFUSED_ROPES[name] in str(logits)
    else:
        real_BT = examples_of(config)[0][1]
        expected = their_logits(folder, config, examples_of(config))
        np.testing.assert_allclose(logits[real_BT], expected[real_BT], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2"])
def test_another_name_of_a_key_overrides_it(tmp_path, name):
    """transformers' attribute_map: num_hidden_layers is encoder_layers, num_layers or n_layer."""
    save_random(name, tmp_path)
    config, architecture = read_config(tmp_path), read_architecture(tmp_path)
    key = FORMATS[config["model_type"]].aliases["num_hidden_layers"]
    write_config(tmp_path, {k: v for k, v in config.items() if k != key} | {"num_hidden_layers": config[key]})
    assert read_architecture(tmp_path) == architecture
    write_config(tmp_path, config | {"num_hidden_layers": config[key] - 1})
    assert getattr(hf.AutoConfig.from_pretrained(tmp_path), key) == config[key] - 1
    assert read_architecture(tmp_path) == dataclasses.replace(
        architecture, **{architecture.depth_fields[0]: config[key] - 1}
    )


def parse(config):
    """Return our architecture of a published config.json, without weights."""
    model_format = FORMATS[config["model_type"]]
    complete = model_format.complete_config(config)
    tied = model_format.always_tied or complete["tie_word_embeddings"]
    return dataclasses.replace(model_format.read_config(complete, tied), vocab_rows=config["vocab_size"])


@pytest.mark.parametrize("name", published.CONFIGS)
def test_published_config_is_the_published_architecture(name):
    config, fields = published.CONFIGS[name]
    model = parse(config)
    assert {field: getattr(model, field) for field in fields} == fields
    model.check()


@pytest.mark.parametrize("name", published.CONFIGS)
def test_published_config_has_the_parameters_of_transformers(name):
    """Counted without weights. Sinusoids are parameters there, the bias of the logits is one here."""
    config, _ = published.CONFIGS[name]
    with torch.device("meta"):
        network = getattr(hf, config["architectures"][0])(hf.AutoConfig.for_model(**config))
    learned = config["model_type"] == "bart"
    counts = [x.numel() for name, x in network.named_parameters() if learned or "embed_positions" not in name]
    ours = {path: math.prod(shape) for path, shape in parameter_shapes(parse(config)).items() if path != "output_bias"}
    unused = 2 * 2 * config["d_model"] if learned else 0  # two rows at the front of two tables
    assert sum(ours.values()) + unused == sum(counts)


def test_mbart_is_refused_by_name(tmp_path):
    write_config(tmp_path, published.BART_LARGE_CNN | {"model_type": "mbart"})
    with pytest.raises(KdError, match="model_type: expected one of bart, .*, got 'mbart'"):
        read_architecture(tmp_path)
