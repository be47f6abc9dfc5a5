"""Exported models write the same texts: in transformers, and with JAX alone."""

import ast
import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.pipeline import PromptBatches
from kd_jax.cli.main import main
from kd_jax.decoding import text
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.int8 import Int8, quantize
from kd_jax.phases import export, prepare, teacher
from kd_jax.phases.workdirs import write_experiment
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers.sentencepiece import EOS, START, SentencePieceTokenizer
from tests.helpers.runs import smoke

SIZES = {"d_model": 32, "heads": 2, "d_ff": 64, "dropout": 0.0}
MODELS = {"encoder_decoder": EncoderDecoder(1, 2, **SIZES), "decoder_only": DecoderOnly(2, **SIZES)}
CLASSES = {"encoder_decoder": "PegasusForConditionalGeneration", "decoder_only": "LlamaForCausalLM"}
ALONE = """
import json, pathlib, sys
sys.modules["kd_jax"] = sys.modules["flax"] = sys.modules["qwix"] = None
import generate
print(json.dumps(generate.generate(pathlib.Path("."), json.loads(sys.argv[1]))))
"""
STEPS = "--teacher.training.steps 30 --teacher.training.eval-every 30 --buckets 40"


@pytest.fixture(scope="module", params=MODELS)
def trained(request, root, tmp_path_factory, lax_promotion):
    """(experiment, workdir with a teacher of each family, folder that it was exported to)."""
    base = smoke(root, STEPS.split())
    recipe = dataclasses.replace(base.teacher, model=MODELS[request.param])
    task = Translation(source="en", target="fr", decoding=Decoding(beam=1, length_ratio=0.0, length=24))
    experiment = dataclasses.replace(base, teacher=recipe, students={}, comparison=None, task=task)
    workdir = Workdir(tmp_path_factory.mktemp(request.param))
    for phase in (prepare, teacher):
        phase.run(experiment, workdir)
    write_experiment(workdir, experiment)
    folder = workdir.path / "exported"
    assert main(["export", "--workdir", str(workdir.path), "--model", "teacher", "--to", str(folder)]) == 0
    return experiment, workdir, folder


def prompts_of(experiment, workdir):
    examples = manifest.read_lines(workdir.data.file("validation.jsonl"))[:7]
    return [experiment.task.prompt(example) for example in examples] + ["", "two  blanks", "⁂ unknown"]


def test_the_folder_has_all_files_and_a_model_card(trained):
    experiment, workdir, folder = trained
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "tokenizer_config.json"]
    class_name = CLASSES[experiment.teacher.model.family]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [class_name]
    card = (folder / "README.md").read_text()
    for said in (workdir.model("teacher").outputs()["digest"], class_name, "teacher.training.steps = 30", "seed 0"):
        assert said in card
    assert "None yet." in card  # there is no report


def test_an_existing_folder_is_refused_and_kept(trained, capsys):
    _, workdir, folder = trained
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["export", "--workdir", str(workdir.path), "--model", "teacher", "--to", str(folder)]) == 2
    assert f"--to: expected a new folder, got {folder}, which exists" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
    "words, line",
    [
        (["--model", "techer", "--to", "x"], "--model: expected one of teacher, got techer. Did you mean teacher?"),
        (
            ["--model", "teacher", "--to", "x", "--int8"],
            "--int8: expected --format jax beside it, got transformers",
        ),
    ],
)
def test_invalid_options_are_refused(trained, words, line, capsys):
    assert main(["export", "--workdir", str(trained[1].path), *words]) == 2
    assert line in capsys.readouterr().err


def test_a_shape_that_transformers_lacks_leaves_no_folder(trained, tmp_path, capsys):
    experiment, workdir, _ = trained
    model = dataclasses.replace(experiment.teacher.model, norm_position="both")
    other = dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, model=model))
    with pytest.raises(export.KdError, match="expected the shape of an architecture of transformers, .*norm_position"):
        export.run(other, workdir, tmp_path / "x", "teacher")
    assert not list(tmp_path.iterdir())


HOSTILE = '\x1b[2J"]\n---\n```\n# <script>a</script> [x](http://a) \u202e `b` |c| *d*'


def test_names_in_the_card_are_escaped(trained):
    """Every name of a stranger is literal text: for a terminal, for Markdown, and for the YAML at the top."""
    experiment, workdir, _ = trained

    @dataclasses.dataclass(frozen=True)
    class Task(Translation):
        name = HOSTILE

    task = Task(source="en", target="fr", decoding=experiment.task.decoding)
    hostile = dataclasses.replace(experiment, name=HOSTILE, task=task)
    use = export.usage_code(hostile, _tokenizer(workdir), experiment.teacher.model, "transformers", [HOSTILE])
    card = export.model_card(hostile, workdir, "teacher", "Class", "transformers", False, use)
    assert not {"\x1b", "\u202e"} & set(card)
    _, front, body = card.split("---\n", 2)
    tags = yaml.safe_load(front)["tags"]
    assert tags[:2] == ["kd_jax", "knowledge-distillation"] and tags[2].startswith("\\x1b[2J") and len(tags) == 3
    tokens = [token for token in MarkdownIt("commonmark").parse(body)]
    assert [token.content for token in tokens if token.type == "html_block"] == []
    assert sum(token.type == "heading_open" for token in tokens) == 3
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_inline", "link_open", "em_open", "strong_open"} & set(inline)
    assert sum(token.type == "fence" for token in tokens) == 2
    (code,) = (token.content for token in tokens if token.type == "fence" and token.info == "python")
    texts = next(line for line in code.splitlines() if line.startswith("texts = "))
    assert ast.literal_eval(texts.removeprefix("texts = ")) == [HOSTILE[:60]]


def _tokenizer(workdir):
    return SentencePieceTokenizer(workdir.data.file("tokenizer.model"))


def test_a_task_that_words_its_prompts_itself_is_named(trained):
    experiment, workdir, _ = trained

    @dataclasses.dataclass(frozen=True)
    class Shouting(Translation):
        def encode_prompt(self, text, tokenizer):
            return super().encode_prompt(text.upper(), tokenizer)

    parts = _tokenizer(workdir), experiment.teacher.model, "transformers", ["a boat"]
    own = dataclasses.replace(experiment, task=Shouting("en", "fr"))
    assert "words its prompts itself, in Python (`" in export.usage_code(own, *parts)
    assert "words its prompts itself" not in export.usage_code(experiment, *parts)


def test_transformers_writes_the_same_text(trained):
    hf = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    experiment, workdir, folder = trained
    model, prompts = experiment.teacher.model, prompts_of(experiment, workdir)
    ours = SentencePieceTokenizer(workdir.data.file("tokenizer.model"))
    encoded = [experiment.task.encode_prompt(prompt, ours) for prompt in prompts]
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    start = [] if model.family == "encoder_decoder" else [1]
    assert theirs(prompts)["input_ids"] == [start + ids.tolist() for ids in encoded]

    auto = hf.AutoModelForSeq2SeqLM if model.family == "encoder_decoder" else hf.AutoModelForCausalLM
    network, complaints = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(complaints.values()), complaints
    given = theirs(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    ids_BT = network.generate(**given)
    if model.family == "decoder_only":
        ids_BT = ids_BT[:, given["input_ids"].shape[1] :]
    written = theirs.batch_decode(ids_BT, skip_special_tokens=True)

    assert [text.to_text(row, ours) for row in greedy_rows(experiment, workdir, encoded)] == written


def test_jax_alone_writes_the_same_tokens(trained, tmp_path):
    """In a process that cannot import kd_jax or Flax."""
    experiment, workdir, _ = trained
    words = ["--model", "teacher", "--to", str(tmp_path / "programs"), "--format", "jax"]
    assert main(["export", "--workdir", str(workdir.path), *words]) == 0
    assert "int8 weights" not in (tmp_path / "programs/README.md").read_text()
    ours = SentencePieceTokenizer(workdir.data.file("tokenizer.model"))
    encoded = [experiment.task.encode_prompt(prompt, ours) for prompt in prompts_of(experiment, workdir)]
    assert alone(tmp_path / "programs", encoded) == until_end(greedy_rows(experiment, workdir, encoded))


def test_a_bfloat16_model_is_exported_in_bfloat16(trained, tmp_path):
    """NumPy's files have no name for that type."""
    experiment, workdir, _ = trained
    ours = SentencePieceTokenizer(workdir.data.file("tokenizer.model"))
    model = experiment.teacher.model
    params = checkpoint.load_params(workdir.model("teacher"), model.build(ours.vocab_size).init)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    export.write_jax(tmp_path, experiment, model, params, ours)
    assert (tmp_path / "params.npz").stat().st_size < 0.7 * sum(2 * x.nbytes for x in jax.tree.leaves(params))
    encoded = [experiment.task.encode_prompt(prompt, ours) for prompt in prompts_of(experiment, workdir)]
    assert alone(tmp_path, encoded) == until_end(greedy_rows(experiment, workdir, encoded, dtype="bfloat16"))


def test_int8_programs_have_a_quarter_of_the_bytes(trained, tmp_path):
    """They write what Int8 writes here, which is mostly what the float model writes; on every platform."""
    experiment, workdir, _ = trained
    words = ["--model", "teacher", "--to", str(tmp_path / "int8"), "--format", "jax", "--int8"]
    assert main(["export", "--workdir", str(workdir.path), *words]) == 0
    ours = SentencePieceTokenizer(workdir.data.file("tokenizer.model"))
    encoded = [experiment.task.encode_prompt(prompt, ours) for prompt in prompts_of(experiment, workdir)]
    written, in_int8 = (greedy_rows(experiment, workdir, encoded, quantized=q) for q in (False, True))
    assert alone(tmp_path / "int8", encoded) == until_end(in_int8)
    assert len(np.unique(written)) > 5 and (written == in_int8).mean() > 0.8

    model = experiment.teacher.model.build(workdir.data.outputs()["vocab_size"])
    params = jax.tree.leaves(checkpoint.load_params(workdir.model("teacher"), model.init))
    arrays = list(np.load(tmp_path / "int8/params.npz").values())
    assert sorted(x.shape for x in arrays if x.dtype == np.int8) == sorted(x.shape for x in params if x.ndim == 2)
    size = (tmp_path / "int8/params.npz").stat().st_size / sum(x.nbytes for x in params)
    assert 0.25 < size < 0.45  # with scales, norms and headers, which weigh more in so narrow a network
    for program in ("prefill", "step"):
        exported = jax.export.deserialize((tmp_path / "int8" / f"{program}.bin").read_bytes())
        assert exported.platforms == ("cpu", "cuda", "tpu")
    card = (tmp_path / "int8/README.md").read_text()
    assert "int8 weights" in card and "--format jax --int8`" in card


def alone(folder, encoded):
    """What generate.py writes, in a process that has neither kd_jax nor Flax nor qwix."""
    texts = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps([ids.tolist() for ids in encoded])],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(texts.stdout)


def until_end(rows):
    return [row[: row.index(EOS)] if EOS in row else row for row in rows.tolist()]


def greedy_rows(experiment, workdir, encoded, quantized=False, dtype="float32"):
    """What the teacher writes, int [rows, length]; with parameters of that type."""
    model = experiment.teacher.model
    built = model.build(workdir.data.outputs()["vocab_size"])
    params = checkpoint.load_params(workdir.model("teacher"), built.init)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    if quantized:
        built, params = Int8(model).build(workdir.data.outputs()["vocab_size"]), quantize(params)
    (inputs,) = PromptBatches(encoded, model.layout(START), (40,), len(encoded), 1, range(len(encoded)))
    parts = {"model": built, "architecture": model, "way": "greedy", "decoding": experiment.task.decoding}
    parts["tokens"] = text.TextTokens((EOS,))
    return np.asarray(text.generate(params, inputs, **parts))
