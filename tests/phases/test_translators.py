"""Teachers as translators and summarisers are published, from their folders to their texts: those of transformers."""

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

CASES = {  # (how the folder is made, our settings, transformers', what generate is told besides)
    "marian": (write_marian, {}, {}, None),
    "m2m100": (write_m2m100, {"target": "__fr__"}, {"src_lang": "en"}, "__fr__"),
    "nllb": (write_nllb, {"source": "deu_Latn", "target": "fra_Latn"}, {"src_lang": "deu_Latn"}, "fra_Latn"),
    "bart": (write_bart, {}, {}, None),
}
LONGEST = 12
STEPS = ["--students.student_kd.training.steps", "4", "--students.student_kd.training.eval-every", "4"]
STEPS += ["--students.student_kd.training.optimizer.warmup", "2", "--buckets", "56"]


@pytest.fixture(scope="module", params=CASES)
def run(request, root, tmp_path_factory, lax_promotion):
    """(name, folder, experiment, workdir) of a run up to a student of the teacher's own targets."""
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


def written_by_transformers(folder, prompts, options, language):
    """Token ids that its `generate` adds, as the folder says, and their text."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, **options)
    network = hf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    first = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(language)} if language else {}
    given = tokenizer(prompts, return_tensors="pt", padding=True)
    forced = bool(first) or network.generation_config.forced_bos_token_id is not None
    ids_BT = network.generate(**given, **first, do_sample=False, num_beams=1, max_new_tokens=LONGEST + forced)
    return ids_BT[:, 1:].tolist(), tokenizer.batch_decode(ids_BT, skip_special_tokens=True)


def generated(experiment, workdir, model, prompts, monkeypatch, capsys):
    """What the command `generate` writes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(prompts).encode())))
    capsys.readouterr()
    generate.run(experiment, workdir, model)
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def written_here(experiment, workdir, tokenizer, encoded):
    """Token ids that the teacher writes greedily."""
    architecture = experiment.teacher.model
    model = architecture.build(tokenizer.vocab_size)
    params = checkpoint.load_params(workdir.model("teacher"), model.init)
    layout = architecture.layout(tokenizer.start, tokenizer.forced_prefix)
    parts = {"model": model, "architecture": architecture, "way": "greedy", "decoding": experiment.task.decoding}
    ends = {"eos": tokenizer.eos, "suppress_tokens": tokenizer.suppress_tokens}
    return np.asarray(text.generate(params, layout.prompts(encoded, len(encoded), 56), **parts, **ends))


def up_to_end(ids_T, eos):
    return ids_T[: ids_T.index(eos)] if eos in ids_T else ids_T


def test_the_teacher_writes_what_transformers_writes(run):
    name, folder, experiment, workdir = run
    _, _, options, language = CASES[name]
    prompts, tokenizer = prompts_of(workdir), experiment.tokenizer.load(workdir.data.path)
    ids_BT, texts = written_by_transformers(folder, prompts, options, language)
    assert all(tuple(ids_T[: len(tokenizer.forced_prefix)]) == tokenizer.forced_prefix for ids_T in ids_BT)
    assert len({tuple(ids_T) for ids_T in ids_BT}) > 1
    encoded = [experiment.task.encode_prompt(prompt, tokenizer) for prompt in prompts]
    for ours_T, theirs_T in zip(written_here(experiment, workdir, tokenizer, encoded), ids_BT, strict=True):
        assert up_to_end([*tokenizer.forced_prefix, *ours_T], tokenizer.eos) == up_to_end(theirs_T, tokenizer.eos)
        assert text.to_text(ours_T, tokenizer) in texts


def test_an_exported_student_writes_what_it_writes_here(run, tmp_path, monkeypatch, capsys):
    """And begins with what was given to it, as its own generation_config.json says."""
    _, _, experiment, workdir = run
    prompts = prompts_of(workdir)
    export.run(read_experiment(workdir), workdir, tmp_path / "student", "student_kd")
    ids_BT, texts = written_by_transformers(tmp_path / "student", prompts, {}, None)
    tokenizer = experiment.tokenizer.load(workdir.data.path)
    assert all(tuple(ids_T[: len(tokenizer.forced_prefix)]) == tokenizer.forced_prefix for ids_T in ids_BT)
    ours = generated(experiment, workdir, "student_kd", prompts, monkeypatch, capsys)
    assert ours == [line.strip() for line in texts]


def test_what_is_given_is_learnt_from_and_does_not_count(run):
    """In the references and in the teacher's own targets, of which a model that is random ends some, but NLLB's."""
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
