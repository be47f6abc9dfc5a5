"""Published translators and summarizers as teachers: they generate what transformers generates."""

import dataclasses
import io
import sys

import numpy as np
import pytest

from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.pipeline import Split
from kd_jax.batches.targets import PseudoTargets
from kd_jax.decoding import text
from kd_jax.experiment import resolve
from kd_jax.phases import cache, export, generate, prepare, student, teacher
from kd_jax.phases.check import check
from kd_jax.phases.workdirs import read_experiment, write_experiment
from kd_jax.students.init import FromTeacher
from kd_jax.students.pretrained import FromHuggingFace, Smaller
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.runs import smoke
from tests.helpers.translators import write_bart, write_m2m100, write_marian, write_network, write_nllb

hf = pytest.importorskip("transformers")

CASES = {  # (writer of the folder, our settings, transformers', language for its `generate`)
    "marian": (write_marian, {}, {}, None),
    "m2m100": (write_m2m100, {"target": "__fr__"}, {"src_lang": "en"}, "__fr__"),
    "nllb": (write_nllb, {"source": "deu_Latn", "target": "fra_Latn"}, {"src_lang": "deu_Latn"}, "fra_Latn"),
    "bart": (write_bart, {}, {}, None),
}
LONGEST = 12
STEPS = ["--students.student_kd.training.steps", "4", "--students.student_kd.training.eval-every", "4"]
STEPS += ["--students.student_kd.training.optimizer.warmup", "2", "--buckets", "56"]


@pytest.fixture(
    scope="module",
    params=[name if name == "marian" else pytest.param(name, marks=pytest.mark.extended) for name in CASES],
)
def run(request, root, tmp_path_factory, lax_promotion):
    """(name, folder, experiment, workdir) after the training of a student of pseudo-targets."""
    make, options, _, _ = CASES[request.param]
    path = tmp_path_factory.mktemp("run")
    folder = make(path)
    folder = write_network(folder, len(hf.AutoTokenizer.from_pretrained(folder)))
    base = smoke(root, STEPS)
    evaluation = dataclasses.replace(base.evaluation, cached_k=0)
    given = dataclasses.replace(
        base.teacher,
        model=None,
        init=FromHuggingFace(str(folder)),
        training=dataclasses.replace(base.teacher.training, steps=0),
    )
    recipe = dataclasses.replace(
        base.students["student_kd"],
        model=Smaller(decoder_layers=1),
        init=FromTeacher(),
        targets=PseudoTargets("best", beam=2),
    )
    experiment = resolve(
        dataclasses.replace(
            base,
            teacher=given,
            students={"student_kd": recipe},
            comparison=None,
            evaluation=evaluation,
            tokenizer=HuggingFaceTokenizer(**options),
            task=Translation(source="en", target="fr", decoding=Decoding(beam=1, length_ratio=0.0, length=LONGEST)),
        )
    )
    check(experiment)
    workdir = Workdir(path / "w")
    for phase in (prepare, teacher, cache, student):
        phase.run(experiment, workdir)
    write_experiment(workdir, experiment)
    return request.param, folder, experiment, workdir


def prompts_of(workdir):
    return [example["en"] for example in manifest.read_lines(workdir.data.file("validation.jsonl"))[:6]]


def generate_with_transformers(folder, prompts, options, language):
    """Return the token ids that its `generate` adds, and their texts."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, **options)
    network = hf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    first = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(language)} if language else {}
    given = tokenizer(prompts, return_tensors="pt", padding=True)
    forced = bool(first) or network.generation_config.forced_bos_token_id is not None
    ids_BT = network.generate(**given, **first, do_sample=False, num_beams=1, max_new_tokens=LONGEST + forced)
    return ids_BT[:, 1:].tolist(), tokenizer.batch_decode(ids_BT, skip_special_tokens=True)


def run_generate(experiment, workdir, model, prompts, monkeypatch, capsys):
    """Return the lines that the command `generate` writes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(prompts).encode())))
    capsys.readouterr()
    generate.run(experiment, workdir, model)
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def greedy_ids(experiment, workdir, tokenizer, encoded):
    """Return the token ids that the teacher generates greedily."""
    architecture = experiment.teacher.model
    model = architecture.build(tokenizer.vocab_size)
    params = checkpoint.load_params(workdir.model("teacher"), model.init)
    layout = architecture.layout(tokenizer.start, tokenizer.forced_prefix)
    parts = {"model": model, "architecture": architecture, "way": "greedy", "decoding": experiment.task.decoding}
    prompts, tokens = layout.prompts(encoded, len(encoded), 56), text.TextTokens.of(tokenizer)
    return np.asarray(text.generate(params, prompts, **parts, tokens=tokens))


def up_to_end(ids_T, eos):
    return ids_T[: ids_T.index(eos)] if eos in ids_T else ids_T


def test_the_teacher_generates_what_transformers_generates(run):
    name, folder, experiment, workdir = run
    _, _, options, language = CASES[name]
    prompts, tokenizer = prompts_of(workdir), experiment.tokenizer.load(workdir.data.path)
    ids_BT, texts = generate_with_transformers(folder, prompts, options, language)
    assert all(tuple(ids_T[: len(tokenizer.forced_prefix)]) == tokenizer.forced_prefix for ids_T in ids_BT)
    assert len({tuple(ids_T) for ids_T in ids_BT}) > 1
    encoded = [experiment.task.encode_prompt(prompt, tokenizer) for prompt in prompts]
    for ours_T, theirs_T in zip(greedy_ids(experiment, workdir, tokenizer, encoded), ids_BT, strict=True):
        assert up_to_end([*tokenizer.forced_prefix, *ours_T], tokenizer.eos) == up_to_end(theirs_T, tokenizer.eos)
        assert text.to_text(ours_T, tokenizer) in texts


def test_an_exported_student_generates_the_same_texts(run, tmp_path, monkeypatch, capsys):
    """It starts with the forced tokens of its generation_config.json."""
    _, _, experiment, workdir = run
    prompts = prompts_of(workdir)
    export.run(read_experiment(workdir), workdir, tmp_path / "student", "student_kd")
    ids_BT, texts = generate_with_transformers(tmp_path / "student", prompts, {}, None)
    tokenizer = experiment.tokenizer.load(workdir.data.path)
    assert all(tuple(ids_T[: len(tokenizer.forced_prefix)]) == tokenizer.forced_prefix for ids_T in ids_BT)
    ours = run_generate(experiment, workdir, "student_kd", prompts, monkeypatch, capsys)
    assert ours == [line.strip() for line in texts]


def test_forced_tokens_are_inputs_that_do_not_count(run):
    """In the references and in the pseudo-targets; the random network ends few texts of NLLB's and M2M100's."""
    name, _, experiment, workdir = run
    assert workdir.split("best_beam2").outputs()["without_hypothesis"] < 120 or name in ("nllb", "m2m100")
    tokenizer = experiment.tokenizer.load(workdir.data.path)
    forced_prefix = len(tokenizer.forced_prefix)
    for folder in (workdir.data, workdir.split("best_beam2")):
        split = Split(folder, "train")
        for i in range(5):
            prompt, completion, counts = split.read(i).encoded
            assert tuple(completion[:forced_prefix]) == tokenizer.forced_prefix and completion[-1] == tokenizer.eos
            assert counts.tolist() == (len(prompt) + forced_prefix) * [False] + (len(completion) - forced_prefix) * [
                True
            ]
            assert not set(tokenizer.suppress_tokens) & set(completion.tolist())
            assert np.all(completion < tokenizer.vocab_size)
