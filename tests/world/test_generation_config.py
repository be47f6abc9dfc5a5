"""generation_config.json: what is applied equals transformers' generate, and the rest is refused by name."""

import dataclasses
import functools
import itertools
import json
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.decoding import text as decoding_text
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.text import TextTokens
from kd_jax.errors import KdError
from kd_jax.evaluation.loaded_model import LoadedModel
from kd_jax.models.huggingface.read import read_model
from kd_jax.students.pretrained import FromHuggingFace
from kd_jax.tasks.base import Decoding, Sampling
from kd_jax.tokenizers import generation_config
from kd_jax.types import Inputs
from tests.helpers.pretrained import write_pretrained

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from tests.models.huggingface.cases import V, save_random  # noqa: E402
from tests.models.huggingface.test_parity import tokens  # noqa: E402

PROMPTS, LENGTH = 60, 12
FAMILIES = {"decoder_only": "llama", "encoder_decoder": "bart"}
END = {"decoder_only": 20, "encoder_decoder": 66}  # that random texts have


def test_every_key_of_transformers_is_applied_refused_or_without_effect():
    ours = [*generation_config.APPLIED, *generation_config.REFUSED, *generation_config.WITHOUT_EFFECT]
    assert len(ours) == len(set(ours))
    theirs = set(hf.GenerationConfig().to_dict())
    assert theirs - {"_original_object_hash", "_commit_hash"} <= set(ours)


@functools.cache
def model_of(family):
    """Return (transformers' network, our network, our parameters), whose texts vary.

    Random networks with a tied embedding repeat their input, so layers of the decoder are made larger.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = save_random(FAMILIES[family], folder)
        with torch.no_grad():
            for name, x in network.named_parameters() if family == "encoder_decoder" else ():
                if "decoder.layers" in name and "norm" not in name:
                    x.mul_(8)
            for name, x in network.named_buffers():
                if name == "final_logits_bias":
                    x.zero_()
        network.save_pretrained(folder)
        model, params = read_model(folder)
    return network, model, jax.tree.map(jnp.asarray, params)


def prompts_of(family, count):
    """Return (transformers' arguments of prompts of one length, and their rows; our Inputs of all) of random prompts.

    transformers takes padding for tokens of the text, so it gets none.
    """
    network, model, _ = model_of(family)
    generator = np.random.default_rng(0)
    length_B = generator.integers(3, 9, count)
    real_BT = np.arange(8) < length_B[:, None]
    real_BT = real_BT if family == "encoder_decoder" else real_BT[:, ::-1]
    ids_BT = np.where(real_BT, generator.integers(3, V, real_BT.shape), network.config.pad_token_id)
    theirs = {}
    for length in np.unique(length_B):
        rows = np.flatnonzero(length_B == length)
        same_BT = ids_BT[rows][:, :length] if family == "encoder_decoder" else ids_BT[rows][:, -length:]
        theirs[tuple(rows.tolist())] = torch.tensor(same_BT)
    ours, index_B = tokens(ids_BT, real_BT), jnp.arange(count, dtype=jnp.int32)
    if family == "decoder_only":
        return theirs, Inputs(index_B, ours, None)
    start = np.full((count, 1), network.config.decoder_start_token_id)
    return theirs, Inputs(index_B, tokens(start, np.ones((count, 1), bool)), ours)


def our_ids(family, inputs, decoding, special):
    _, model, params = model_of(family)
    generate = functools.partial(
        decoding_text.generate, model=model.build(V), architecture=model, way="greedy", decoding=decoding,
        tokens=TextTokens(**{"ends": (END[family],)} | special),
    )  # fmt: skip
    return np.asarray(jax.jit(generate)(params, inputs)).tolist()


def generate_each(family, prompts, **settings):
    """Return row -> (ids, score) by transformers, the prompt not included."""
    network, _, _ = model_of(family)
    defaults = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": END[family], "pad_token_id": 0}
    defaults |= {"return_dict_in_generate": True, "output_scores": True}
    texts = {}
    for rows, ids_BT in prompts.items():
        output = network.generate(ids_BT, **defaults | settings)
        start = 1 if family == "encoder_decoder" else ids_BT.shape[1]
        scores = output.sequences_scores.tolist() if "sequences_scores" in output else [0.0] * len(rows)
        texts |= dict(zip(rows, zip(output.sequences[:, start:].tolist(), scores, strict=True), strict=True))
    return [texts[row] for row in sorted(texts)]


def text_of(ids_T, ends):
    """Return the ids before the first end token."""
    return list(itertools.takewhile(lambda i: i not in (*ends, -1), ids_T))


DECODING = Decoding(beam=1, length_ratio=0.0, length=LENGTH)
RULES = {  # settings of transformers -> ours
    "repetition_penalty": ({"repetition_penalty": 1.7}, {"sampling": Sampling(repetition_penalty=1.7)}),
    "no_repeat_ngram_size 1": ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram": 1}),
    "no_repeat_ngram_size 2": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram": 2}),
    "no_repeat_ngram_size 3": ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram": 3}),
    "encoder_no_repeat_ngram_size": ({"encoder_no_repeat_ngram_size": 1}, {"no_source_ngram": 1}),
    "min_new_tokens": ({"min_new_tokens": 5}, {"min_length": 5}),
    "all": (
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"sampling": Sampling(repetition_penalty=1.3), "no_repeat_ngram": 2, "no_source_ngram": 2, "min_length": 4},
    ),
}
FIRST = (57, 58, 34, 24, 16)
IDS = {  # settings of ids: transformers' -> ours
    "two ends": ({"eos_token_id": [66, 20, 14, 27]}, {"ends": (66, 20, 14, 27)}),
    "forced_eos_token_id": ({}, {"force_end": True}),  # of END
    "begin_suppress_tokens": ({"begin_suppress_tokens": list(FIRST)}, {"suppress_first": FIRST}),
    "suppress_tokens": ({"suppress_tokens": list(FIRST)}, {"suppress_tokens": FIRST}),
}
CASES = {name: (theirs, ours, {}) for name, (theirs, ours) in RULES.items()}
CASES |= {name: (theirs, {}, special) for name, (theirs, special) in IDS.items()}


def some(names, *quick):
    """Return names as parameters; all but the quick ones are run by `make test-all` only."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.extended) for name in names]


def their_settings(family, name):
    forced = {"forced_eos_token_id": END[family]} if name == "forced_eos_token_id" else {}
    return CASES[name][0] | forced


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", some(CASES, "repetition_penalty", "all", "two ends", "forced_eos_token_id"))
def test_greedy_texts_with_each_setting_are_those_of_transformers(family, name):
    """For 60 of 60 prompts; and without the setting they are others."""
    _, fields, special = CASES[name]
    prompts, inputs = prompts_of(family, PROMPTS)
    ends = special.get("ends", (END[family],))
    ours = our_ids(family, inputs, dataclasses.replace(DECODING, **fields), special)
    theirs = generate_each(family, prompts, **their_settings(family, name))
    assert [text_of(ids_T, ends) for ids_T in ours] == [text_of(ids_T, ends) for ids_T, _ in theirs]
    without = our_ids(family, inputs, DECODING, {})
    assert [text_of(ids_T, ends) for ids_T in ours] != [text_of(ids_T, (END[family],)) for ids_T in without]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", some(CASES, "all"))
def test_beam_texts_with_each_setting_are_those_of_transformers(family, name):
    """Or score higher, because transformers drops ended hypotheses; or end, where theirs is cut off."""
    if name == "suppress_tokens":
        pytest.skip("suppressed tokens have no probability here; in transformers the others keep theirs")
    _, fields, special = CASES[name]
    ends = special.get("ends", (END[family],))
    prompts, inputs = prompts_of(family, 24)
    _, model, params = model_of(family)
    rules = TextTokens(**{"ends": ends} | special).rules(dataclasses.replace(DECODING, **fields))
    search = functools.partial(beam_search, model.build(V), eos=ends, length=LENGTH, beam=3, alpha=0.0, rules=rules)
    output = jax.jit(search)(params, inputs)
    settings = {"num_beams": 3, "length_penalty": 0.0} | their_settings(family, name)
    same = 0
    for row, (their_ids_T, their_score) in enumerate(generate_each(family, prompts, **settings)):
        ours, theirs = text_of(output.ids_BKT[row, 0].tolist(), ends), text_of(their_ids_T, ends)
        same += ours == theirs
        cut_off = len(ours) < len(theirs) == LENGTH
        assert ours == theirs or cut_off or float(output.logp_BK[row, 0]) > their_score + 1e-3, row
    assert same >= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_texts_obey_the_rules(family):
    _, inputs = prompts_of(family, PROMPTS)
    hot = dataclasses.replace(DECODING, sampling=Sampling(temperature=9.0), no_repeat_ngram=1, min_length=6)
    texts = [text_of(ids_T, (END[family],)) for ids_T in our_ids(family, inputs, hot, {})]
    assert all(len(ids_T) >= 6 and len(set(ids_T)) == len(ids_T) for ids_T in texts)
    assert len({tuple(ids_T) for ids_T in texts}) == PROMPTS


# Folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return family -> a folder with tokenizer and model that a test must copy."""
    return {family: write_pretrained(tmp_path_factory.mktemp("folder") / family, family) for family in FAMILIES}


def with_generation(folders, family, tmp_path, generation, **config):
    """Return a copy of the folder with a generation_config.json (None: none) and further keys of config.json."""
    folder = shutil.copytree(folders[family], tmp_path / "copy")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


AUTO = {"decoder_only": "AutoModelForCausalLM", "encoder_decoder": "AutoModelForSeq2SeqLM"}
LINES = ["a small house", "the green tree and the red house", "one", "two small dogs sleep in the old house"]


def their_texts(family, folder, **arguments):
    """Return transformers' texts of LINES, one by one."""
    network, tokenizer = getattr(hf, AUTO[family]).from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    texts = []
    for line in LINES:
        inputs = tokenizer(line, return_tensors="pt")
        if family == "decoder_only":  # our start token, which this tokenizer does not add
            inputs = {"input_ids": torch.cat([torch.tensor([[1]]), inputs["input_ids"]], dim=1)}
        inputs.pop("token_type_ids", None)
        ids_BT = network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=24, **arguments)
        start = 1 if family == "encoder_decoder" else inputs["input_ids"].shape[1]
        texts.append(tokenizer.decode(ids_BT[0, start:], skip_special_tokens=True))
    return texts


SPECIAL = {"decoder_only": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}}
SPECIAL["encoder_decoder"] = SPECIAL["decoder_only"] | {"decoder_start_token_id": 0}
FILES = {  # generation_config.json beside the special ids
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_length": {"min_new_tokens": 9},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1},
    "nulls": {"no_repeat_ngram_size": None, "bad_words_ids": None, "suppress_tokens": None, "min_length": None},
    "bart": {"no_repeat_ngram_size": 3, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True,
             "forced_eos_token_id": 2},
    "suppressed": {"bad_words_ids": [[9], [2]], "suppress_tokens": [11, 12], "begin_suppress_tokens": [20, 21, 22]},
}  # fmt: skip


FOLDERS = [(family, name) for name in FILES for family in FAMILIES]
QUICK = [("encoder_decoder", "bart"), ("decoder_only", "sampling")]


@pytest.mark.parametrize(
    ("family", "name"), [pytest.param(*x, marks=() if x in QUICK else pytest.mark.extended) for x in FOLDERS]
)
def test_texts_of_a_folder_are_those_of_transformers(folders, tmp_path, family, name):
    folder = with_generation(folders, family, tmp_path, SPECIAL[family] | FILES[name])
    ours = LoadedModel.from_folder(folder).generate(LINES, max_length=24)
    assert ours == their_texts(family, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_end_token_of_a_list_ends_a_text(folders, tmp_path, family):
    folder = with_generation(folders, family, tmp_path, SPECIAL[family])
    whole = LoadedModel.from_folder(folder)
    prompts = {number: whole.encode(line) for number, line in enumerate(LINES)}
    decoding = dataclasses.replace(whole.decoding, length=24)
    texts = whole.generate_from_ids(prompts, decoding)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    second = tokenizer(texts[0], add_special_tokens=False)["input_ids"][3]  # a token that the first text has
    (folder / "generation_config.json").write_text(json.dumps(SPECIAL[family] | {"eos_token_id": [2, second]}))
    ours = LoadedModel.from_folder(folder)
    assert ours.tokenizer.ends == (2, second) and ours.tokenizer.eos == 2
    shorter = ours.generate_from_ids(prompts, decoding)
    assert len(shorter[0]) < len(texts[0])
    theirs = [text.removesuffix(tokenizer.decode([second])) for text in their_texts(family, folder)]
    assert [shorter[number].rstrip() for number in prompts] == [text.rstrip() for text in theirs]


def test_forced_first_token_and_lists_of_one_id(folders, tmp_path):
    ids = SPECIAL["encoder_decoder"] | {"eos_token_id": [2], "decoder_start_token_id": [0], "forced_bos_token_id": 4}
    folder = with_generation(folders, "encoder_decoder", tmp_path, ids)
    model = LoadedModel.from_folder(folder)
    assert (model.tokenizer.start, model.tokenizer.ends, model.tokenizer.forced_prefix) == (0, (2,), (4,))
    assert model.generate(LINES, max_length=23) == their_texts("encoder_decoder", folder)


@pytest.mark.parametrize("key", ["eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "min_length"])
@pytest.mark.parametrize("value", ["2", [[2]], {"a": 1}, -1, 1.5, True, [2, "3"]])
def test_values_of_another_type_are_named(folders, tmp_path, key, value):
    folder = with_generation(folders, "encoder_decoder", tmp_path, SPECIAL["encoder_decoder"] | {key: value})
    with pytest.raises(KdError, match=f"generation_config.json: {key}: expected "):
        LoadedModel.from_folder(folder)


def test_several_starts_or_sequences_are_refused(folders, tmp_path):
    for number, (key, value) in enumerate(
        {"decoder_start_token_id": [0, 4], "forced_bos_token_id": [4, 5], "bad_words_ids": [[5, 6]],
         "forced_eos_token_id": 9}.items()
    ):  # fmt: skip
        generation = SPECIAL["encoder_decoder"] | {key: value}
        folder = with_generation(folders, "encoder_decoder", tmp_path / str(number), generation)
        with pytest.raises(KdError, match=f"generation_config.json: {key}: expected "):
            LoadedModel.from_folder(folder)


CHANGING = {  # of each refused key: a value that changes texts
    "assistant_ensemble_weight": 0.5, "constraints": [[1]], "dola_layers": "high", "encoder_repetition_penalty": 1.2,
    "exponential_decay_length_penalty": [3, 1.5], "force_words_ids": [[5]], "guidance_scale": 1.5,
    "is_assistant": True, "max_time": 0.5, "penalty_alpha": 0.6, "sequence_bias": [[[5], -2.0]],
    "stop_strings": ["."], "token_healing": True, "watermarking_config": {"bias": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("key", generation_config.REFUSED)
def test_what_is_not_implemented_is_refused_by_name(key):
    with pytest.raises(KdError, match=f"generation_config.json: {key}: expected none, .* Remove it from the file"):
        generation_config.read_settings({key: CHANGING[key]}, True, 0)
    for neutral in generation_config.REFUSED[key]:
        generation_config.read_settings({key: neutral}, True, 0)
    assert generation_config.merge({key: CHANGING[key]}, {}) == {}  # as in transformers, which reads one file


def test_min_length_counts_start_and_forced_tokens_of_an_encoder_decoder():
    """At min_length 56 a text of BART has 54 tokens besides start and forced token before it ends."""
    assert generation_config.read_settings({"min_length": 56}, True, 1).min_length == 54
    with pytest.raises(KdError, match="min_length: expected min_new_tokens for a decoder-only model"):
        generation_config.read_settings({"min_length": 56}, False, 0)


@pytest.mark.parametrize("generation", [None, {}, {"bos_token_id": 1}, {"eos_token_id": 2, "forced_bos_token_id": 4}])
@pytest.mark.parametrize("config", [{}, {"no_repeat_ngram_size": 2, "forced_bos_token_id": 5, "bos_token_id": 3}])
def test_settings_come_from_one_of_two_files_as_in_transformers(folders, tmp_path, config, generation):
    folder = with_generation(folders, "encoder_decoder", tmp_path, generation, **config)
    theirs = hf.AutoModelForSeq2SeqLM.from_pretrained(folder).generation_config
    written = json.loads((folder / "config.json").read_text())
    ours = generation_config.merge(written, generation)
    for key in ("no_repeat_ngram_size", "forced_bos_token_id"):
        assert ours.get(key) == getattr(theirs, key)
    start = theirs.decoder_start_token_id if theirs.decoder_start_token_id is not None else theirs.bos_token_id
    assert start is None or ours["decoder_start_token_id"] == start
    assert theirs.eos_token_id in (None, ours["eos_token_id"])


def test_an_experiment_obeys_the_folder_or_says_that_it_does_not(folders, tmp_path):
    generation = SPECIAL["encoder_decoder"] | {"no_repeat_ngram_size": 3, "min_length": 7, "repetition_penalty": 1.2}
    folder = str(with_generation(folders, "encoder_decoder", tmp_path, generation))
    same = Decoding(no_repeat_ngram=3, min_length=6, sampling=Sampling(repetition_penalty=1.2))
    FromHuggingFace(folder).check_decoding(same, True)
    FromHuggingFace(folder, generation="own").check_decoding(Decoding(), True)
    for changed, message in (
        ({"no_repeat_ngram": 0}, "task.decoding.no_repeat_ngram: expected 3, by no_repeat_ngram_size in generation"),
        ({"min_length": 0}, "task.decoding.min_length: expected 6, by min_length in generation_config.json"),
        ({"sampling": Sampling()}, "task.decoding.sampling.repetition_penalty: expected 1.2, by repetition_penalty"),
    ):
        with pytest.raises(KdError, match=message):
            FromHuggingFace(folder).check_decoding(dataclasses.replace(same, **changed), True)
    with pytest.raises(KdError, match="init.generation: expected same or own, got 'other'"):
        FromHuggingFace(folder, generation="other").check(None, None)  # type: ignore[arg-type]
