"""An imported teacher: the same small teacher, once through `cache` and once through files."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.pipeline import Split
from kd_jax.batches.store import Store, shard_path
from kd_jax.cli.main import main
from kd_jax.errors import KdError
from kd_jax.experiment import Training
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.objective.terms import Term
from kd_jax.optim.optimizer import Optimizer
from kd_jax.phases import ablate, cache, evaluate, import_logprobs, report, student, teacher
from kd_jax.phases.workdirs import write_experiment
from kd_jax.signals.online import Online
from kd_jax.signals.topk import TopK
from kd_jax.students.init import FromTeacher
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.translation import Translation
from kd_jax.teaching.imported.base import LogprobSource
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.model import load_trained
from tests.helpers.runs import copied_run, linked_run, run_until_cache, smoke
from tests.teaching.imported.readers import writers

K, V = 8, 60
SIZES = {"d_model": 32, "heads": 2, "d_ff": 64, "dropout": 0.0, "positions": "learned", "context": 256}
RAW = {name: LogprobSource(name, 1.0, "raw") for name in ("vllm", "sglang", "distillkit", "maxtext")}


@pytest.fixture(scope="module")
def experiment(root, lax_promotion):
    """80 pairs, decoder-only; a student with a top-8 signal and one without, both with random first parameters."""
    base = smoke(root, ["--source.labelled", "80", "--buckets", "40", "--evaluation.cached-k", "12"])
    training = Training(steps=2, tokens_per_batch=512, eval_every=2, optimizer=Optimizer(learning_rate=5e-3, warmup=1))
    long = dataclasses.replace(training, steps=24, eval_every=24)
    teacher = dataclasses.replace(base.teacher, model=DecoderOnly(2, **SIZES), training=long)
    plain = dataclasses.replace(
        teacher, model=DecoderOnly(1, **SIZES), training=training, terms={"ce": Term(cross_entropy)}
    )
    terms = plain.terms | {"kd": Term(forward_kl, signal=TopK(k=K))}
    students = {"student_scratch": plain, "student_kd": dataclasses.replace(plain, terms=terms)}
    evaluation = dataclasses.replace(base.evaluation, texts=6, batch_size=4, speed_texts=1, bootstrap=10)
    task = Translation(decoding=Decoding(beam=1, length_ratio=0.0, length=20))
    return dataclasses.replace(base, teacher=teacher, students=students, evaluation=evaluation, task=task)


@pytest.fixture(scope="module")
def trained_run(experiment, tmp_path_factory):
    """The workdir where the teacher was trained."""
    return run_until_cache(experiment, tmp_path_factory.mktemp("there") / "run")


@pytest.fixture(scope="module")
def logprobs(experiment, trained_run):
    """Split -> (token ids [S], log-probabilities [S, V]) of every example; row t predicts token t + 1."""
    model, params = load_trained(experiment, trained_run, TEACHER)
    apply = jax.jit(lambda batch: model.head(params).logits(model.apply(params, batch.inputs)))
    splits = {}
    for name in ("train", "validation"):
        split, splits[name] = Split(trained_run.data, name), []
        batch = split.batch(
            experiment.teacher.model.layout(START), [[i] for i in range(len(split))], len(split), Bucket(80, 80)
        )
        logp_BTV = np.asarray(jax.nn.log_softmax(apply(batch)))
        for i in range(len(split)):
            encoded = split.read(i).encoded
            tokens = [START, *encoded.prompt.tolist(), *encoded.completion.tolist()]
            splits[name].append((tokens, logp_BTV[i, : len(tokens)]))
    return splits


def write(form, folder, sequences, k):
    """Write sequences in one format, shuffled, since their order has no meaning."""
    folder.mkdir(exist_ok=True)
    sequences = [sequences[i] for i in np.random.default_rng(0).permutation(len(sequences))]
    if form == "distillkit":
        return writers.distillkit(folder / "data_0.parquet", sequences)
    if form == "maxtext":
        return writers.maxtext(folder / "data.arrayrecord", sequences, k)
    of = {"vllm": writers.vllm_response, "flat": writers.vllm_flat, "sglang": writers.sglang_response}[form]
    return writers.lines(folder / f"{form}.jsonl", [of(*one, k) for one in sequences])


def records(workdir, folder=None):
    store = Store((folder or workdir.cache("", "topk")).path, "records")
    return [store[i] for i in range(len(store))]


def with_tail(experiment, tail, **changes):
    """Return the experiment with another tail rule."""
    kd = dataclasses.replace(
        experiment.students["student_kd"], terms={"kd": Term(forward_kl, signal=TopK(k=K, tail=tail))}
    )
    evaluation = dataclasses.replace(experiment.evaluation, **changes)
    return dataclasses.replace(experiment, students=experiment.students | {"student_kd": kd}, evaluation=evaluation)


def assert_same_ids(got, want):
    np.testing.assert_array_equal(got["ids"][:, :K], want["ids"][:, :K])


def assert_same_order(got, want):
    """Check ids in order, except for logits that DistillKit's 12 bits cannot separate."""
    logits = np.pad(want["logits"].astype(float), ((0, 0), (1, 0)), constant_values=np.inf)
    apart = np.diff(-logits) > 0.01
    clear = (apart[:, :-1] & apart[:, 1:])[:, :K]  # the last rank has no successor
    ranks = clear.shape[1]
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(got["ids"][:, :ranks][clear], want["ids"][:, :ranks][clear])


@pytest.mark.parametrize(
    "form, tail", [*((f, "bucket") for f in ("vllm", "flat", "sglang", "distillkit")), ("maxtext", "")]
)
def test_imported_records_equal_those_of_the_cache(experiment, trained_run, logprobs, tmp_path, form, tail):
    """Ids, logits and, if known, the rest of every target; a student trains from them."""
    changed = experiment if tail else with_tail(experiment, "renormalise", cached_k=0)
    run, source = linked_run(trained_run, tmp_path / "run", "data"), RAW["vllm" if form == "flat" else form]
    sequences = logprobs["train"] + (logprobs["validation"] if tail else [])
    import_logprobs.run(changed, run, [write(form, tmp_path / "files", sequences, 16)], source)
    # Residuals in 4 bits, for DistillKit's last ranks; float16 for the others.
    close = {"atol": 0.02 if form == "distillkit" else 4e-3}
    assert_order = assert_same_order if form == "distillkit" else assert_same_ids
    for got, want in zip(records(run), records(trained_run), strict=True):
        np.testing.assert_array_equal(got["digest"], want["digest"])
        assert_order(got, want)
        np.testing.assert_allclose(got["logits"].astype(float), want["logits"].astype(float), **close)
        assert ("rest_t1" in got) == bool(tail)
        if tail:
            np.testing.assert_allclose(got["rest_t1"], want["rest_t1"], **close)
    if tail:
        for got, want in zip(
            records(run, run.validation_cache), records(trained_run, trained_run.validation_cache), strict=True
        ):
            assert_order(got, want)
    student.run(changed, run, only="student_kd")
    manifest = run.cache("", "topk").manifest()
    assert manifest["inputs"]["imported.format"] == source.format and manifest["inputs"]["imported.mode"] == "raw"
    assert manifest["outputs"]["tail"] == ("by subtraction" if tail else "unknown")


def test_records_of_completions_alone_are_matched(experiment, trained_run, logprobs, tmp_path):
    """As from an encoder-decoder: the start token and the completion."""
    run, split = linked_run(trained_run, tmp_path / "run", "data"), Split(trained_run.data, "train")
    after = [len(split.read(i).encoded.prompt) for i in range(len(split))]
    decoded = [
        ([START, *tokens[1 + p :]], logp[p:]) for p, (tokens, logp) in zip(after, logprobs["train"], strict=True)
    ]
    source = dataclasses.replace(RAW["sglang"], sequence="completion")
    changed = with_tail(experiment, "bucket", cached_k=0)
    import_logprobs.run(changed, run, [write("sglang", tmp_path, decoded, 16)], source)
    for got, want in zip(records(run), records(trained_run), strict=True):
        np.testing.assert_array_equal(got["ids"], want["ids"])
        np.testing.assert_allclose(got["rest_t1"], want["rest_t1"], atol=4e-3)


@pytest.fixture(scope="module")
def imported(experiment, trained_run, logprobs, tmp_path_factory):
    """(workdir, file) of an import of a vLLM server's responses on the command line."""
    folder = tmp_path_factory.mktemp("here")
    run = copied_run(trained_run, folder / "run", "data")
    write_experiment(run, experiment)
    file = write("vllm", folder, logprobs["train"] + logprobs["validation"], 16)
    options = ["--format", "vllm", "--temperature", "1", "--mode", "raw"]
    assert main(["import-logprobs", str(file), "--workdir", str(run.path), *options]) == 0
    return run, file


def test_all_later_phases_run_without_the_teacher(experiment, imported, capsys):
    run, file = imported
    for phase in (teacher, cache, student, evaluate, report):
        phase.run(experiment, run)
    captured = capsys.readouterr()
    assert "teacher: imported by `import-logprobs`" in captured.err and "cache: imported by" in captured.err
    assert "the gap to its teacher, imported as log-probabilities, is unknown" in " ".join(captured.out.split())
    figures = json.loads((run.report.path / "report.json").read_text())
    assert list(figures["models"]) == ["student_scratch", "student_kd"] and "import-logprobs" in figures["wall_seconds"]
    for model in figures["models"].values():
        assert model["kl_to_teacher"] is None and model["cross_entropy"] > 0 and model["offline"]["kl_to_teacher"] > 0
    options = ["--format", "vllm", "--temperature", "1", "--mode", "raw"]
    assert main(["import-logprobs", str(file), "--workdir", str(run.path), *options]) == 0
    assert "already done" in capsys.readouterr().err
    for command in (["generate"], ["export", "--format", "jax", "--to", str(run.path / "exported")]):
        assert main([*command, "--workdir", str(run.path), "--model", "teacher"]) == 2
        assert "the teacher is elsewhere" in capsys.readouterr().err


def test_an_ablation_with_an_imported_teacher_is_refused(experiment, imported, tmp_path):
    (tmp_path / "seed7").symlink_to(imported[0].path)
    with pytest.raises(KdError, match="seed 7: expected a teacher to compare with"):
        ablate.run(experiment, Workdir(tmp_path), (3, 7), experiment.task.metrics, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["seed7"]


def test_a_damaged_shard_is_written_again(experiment, imported, capsys):
    run, file = imported
    path = shard_path(run.cache("", "topk").path, "records", 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    import_logprobs.run(experiment, run, [file], RAW["vllm"])
    assert "damaged files, to be written again" in capsys.readouterr().err and path.read_bytes() == whole


def test_missing_records_are_refused_or_have_no_effect(experiment, trained_run, logprobs, tmp_path, capsys):
    run = linked_run(trained_run, tmp_path / "run", "data")
    file = write("vllm", tmp_path, logprobs["train"][1:] + logprobs["validation"], 16)
    with pytest.raises(
        KdError, match=r"train: expected .* all \d+ targets, got \d+ .* are missing, first of example 0.*--missing"
    ):
        import_logprobs.run(experiment, run, [file], RAW["vllm"])
    assert "79 of 80 examples" in capsys.readouterr().out and not run.cache("", "topk").path.exists()
    import_logprobs.run(experiment, run, [file], dataclasses.replace(RAW["vllm"], missing=0.1), force=True)
    first, second, *_ = records(run)
    assert np.isneginf(first["logits"]).all() and (first["rest_t1"] == 0).all() and np.isfinite(second["logits"]).all()
    with pytest.raises(KdError, match="evaluation.cached_k: expected all .* targets of the validation split"):
        import_logprobs.run(experiment, run, [write("vllm", tmp_path, logprobs["train"], 16)], RAW["vllm"], force=True)


def test_an_unknown_rest_is_refused_if_a_term_needs_it(experiment, trained_run, logprobs, tmp_path):
    run = linked_run(trained_run, tmp_path / "run", "data")
    file = write("maxtext", tmp_path, logprobs["train"], 16)
    with pytest.raises(
        KdError,
        match="record 1: expected .*students.student_kd.terms.kd.signal.*got logits without log Z of 16 of 60 tokens",
    ):
        import_logprobs.run(with_tail(experiment, "bucket", cached_k=0), run, [file], RAW["maxtext"])
    whole = write("maxtext", tmp_path, logprobs["train"], V)
    import_logprobs.run(with_tail(experiment, "bucket", cached_k=0), run, [whole], RAW["maxtext"], force=True)
    for got, want in zip(records(run), records(trained_run), strict=True):
        np.testing.assert_allclose(got["rest_t1"], want["rest_t1"], atol=1e-4)
    assert run.cache("", "topk").outputs()["tail"] == "exact"


def test_an_import_that_does_not_serve_the_students_is_refused(experiment, trained_run, logprobs, tmp_path):
    run = linked_run(trained_run, tmp_path / "run", "data")
    file, kd = (
        write("sglang", tmp_path, logprobs["train"] + logprobs["validation"], 4),
        experiment.students["student_kd"],
    )
    online = {"kd": Term(forward_kl, signal=Online())}
    for changes, reason in (
        ({"init": FromTeacher()}, "students.it.init: expected a start without the imported teacher's parameters"),
        ({"terms": online}, "students.it.terms.kd.signal: expected TopK"),
        ({"terms": {"ce": Term(cross_entropy)}}, "students: expected a term that reads TopK"),
    ):
        other = dataclasses.replace(experiment, students={"it": dataclasses.replace(kd, **changes)}, comparison=None)
        with pytest.raises(KdError, match=reason):
            import_logprobs.run(other, run, [file], RAW["sglang"])
    with pytest.raises(KdError, match="signal.k: expected at most 4, .* got 8"):
        import_logprobs.run(experiment, run, [file], RAW["sglang"])
    with pytest.raises(KdError, match="none of 95 records belongs to an example"):
        import_logprobs.run(
            experiment, run, [file], dataclasses.replace(RAW["sglang"], sequence="completion"), force=True
        )
    with pytest.raises(KdError, match="expected files of `import-logprobs`, got files of `teacher`"):
        import_logprobs.run(
            experiment, linked_run(trained_run, tmp_path / "other", "data", TEACHER), [file], RAW["sglang"], True
        )
    assert trained_run.model(TEACHER).finished()


@pytest.mark.parametrize(
    "words, reason",
    [
        ("--format vllm --mode raw", "kd-jax import-logprobs: missing --temperature T"),
        ("--format vllm --mode raw --temperature 0.7", "--temperature: expected 1 for raw log-probabilities, got 0.7"),
        (
            "--format megatron --mode raw --temperature 1",
            "--format: expected vllm, sglang, distillkit or maxtext, got 'megatron'",
        ),
        (
            "--format vllm --mode raw --temperature 1 --sum-error 2",
            "--sum-error: expected a number from 0 to 1, got 2.0",
        ),
        ("--format vllm --mode raw --temperature 1 --seed 3", "--seed: an option of generate, not of import-logprobs"),
    ],
)
def test_invalid_options_are_one_line(experiment, trained_run, tmp_path, capsys, words, reason):
    run = copied_run(trained_run, tmp_path / "run", "data")
    write_experiment(run, experiment)
    file = tmp_path / "file"
    file.write_text("{}")
    assert main(["import-logprobs", str(file), "--workdir", str(run.path), *words.split()]) == 2
    assert f"error: {reason}" in capsys.readouterr().err
