"""Rounds with a teacher elsewhere: its scores come from files, and the student is the one that learns beside it."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest

from kd_jax import FromTeacher, Online, OnPolicy, PseudoTargets, Rounds, Term, forward_kl
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.store import Store
from kd_jax.cli.main import main
from kd_jax.cli.overrides import apply_overrides
from kd_jax.errors import KdError, ScoresNeeded
from kd_jax.phases import import_logprobs, student
from kd_jax.phases.workdirs import write_experiment
from kd_jax.teaching.imported.base import LogprobSource, required_round_signal, required_signal
from kd_jax.training.model import load_trained
from kd_jax.types import Inputs, Tokens
from tests.helpers.runs import copied_run
from tests.teaching.imported.readers import writers

V, K, EXAMPLES, START, END = 60, 8, 24, 1, 2
CONFIG = """
import dataclasses
from kd_jax import (
    DecoderOnly, EncoderDecoder, Optimizer, Random, Rounds, Term, TopK, Training, cross_entropy, forward_kl,
    load_experiment,
)
smoke = load_experiment({smoke!r})
sizes = dict(d_model=32, heads=2, dropout=0.0)
models = {{
    "decoder_only": [DecoderOnly(1, d_ff=d_ff, **sizes) for d_ff in (64, 32)],
    "encoder_decoder": [EncoderDecoder(1, 1, d_ff=d_ff, **sizes) for d_ff in (64, 32)],
}}[{family!r}]
optimizer = Optimizer(learning_rate=5e-3, warmup=1)
training = Training(steps=4, tokens_per_batch=512, eval_every=4, optimizer=optimizer, select="cross_entropy")
teacher = dataclasses.replace(smoke.teacher, model=models[0], training=training)
own = dataclasses.replace(
    teacher,
    model=models[1],
    terms={{"ce": Term(cross_entropy), "kd": Term(forward_kl, signal=TopK(k={k}))}},
    targets=Rounds(count=2, share=0.5, examples={examples}),
)
experiment = dataclasses.replace(smoke, teacher=teacher, students={{"own": own}}, comparison=None)
"""
SHORT = """
--source.examples 120 --source.labelled 80 --tokenizer.vocab-size 60 --buckets 40 --backend jit --evaluation.cached-k 0
--evaluation.texts 2 --evaluation.samples 2 --evaluation.bootstrap 10 --evaluation.speed-texts 1 --evaluation.draft 0
--task.decoding.beam 1 --task.decoding.length 20
"""
WHOLE = LogprobSource("vllm", 1.0, "raw")
SOURCES = {"decoder_only": WHOLE, "encoder_decoder": dataclasses.replace(WHOLE, sequence="completion")}


class Case(NamedTuple):
    """A config, its experiment, and the workdir where the student learned beside its teacher."""

    config: str
    experiment: object
    here: Workdir
    source: LogprobSource

    def words(self, workdir):
        return [self.config, "--workdir", str(workdir.path), *SHORT.split()]


@pytest.fixture(scope="module")
def case(root, tmp_path_factory, lax_promotion):
    """A function of a family; each case is made once. Read only."""

    @functools.cache
    def make(family) -> Case:
        folder = tmp_path_factory.mktemp(family)
        smoke = str(root / "experiments/configs/smoke.py")
        (folder / "config.py").write_text(CONFIG.format(smoke=smoke, family=family, k=K, examples=EXAMPLES))
        config = str(folder / "config.py")
        one = Case(config, apply_overrides(config, SHORT.split()), Workdir(folder / "run"), SOURCES[family])
        for phase in ("prepare", "teacher", "student"):
            assert main([phase, *one.words(one.here)]) == 0
        return one

    return make


@pytest.fixture(scope="module")
def waiting(case, tmp_path_factory):
    """A function of a family: (case, workdir of a student that waits for the scores of its second round, file)."""

    @functools.cache
    def make(family):
        one, folder = case(family), tmp_path_factory.mktemp("waiting")
        run = copied_run(one.here, folder / "run", "data")
        assert main(["sample", *one.words(run), "--only", "own"]) == 0
        file = import_round(one, run, 0, folder)
        with pytest.raises(ScoresNeeded, match=rf"^own: round 2 of 2 needs .* of {run.path}/students/own/rounds/1/tex"):
            student.run(one.experiment, run)
        return one, run, file

    return make


def copy_of(run, path):
    return copied_run(run, path, *(folder.name for folder in run.path.iterdir() if folder.is_dir()))


@pytest.fixture
def sampled(case, tmp_path):
    """(case, workdir with the data and the texts of the first round)."""
    one = case("decoder_only")
    run = copied_run(one.here, tmp_path / "run", "data")
    assert main(["sample", *one.words(run)]) == 0
    return one, run


def texts_file(run, number):
    return run.round("own", number).path / "texts.jsonl"


def read_lines(run, number):
    return [json.loads(line) for line in texts_file(run, number).read_text().splitlines()]


def score(one, lines, path, form=writers.vllm_response):
    """Write the teacher's log-probabilities of all tokens of each line: softmax in float64 of the logits of its row."""
    model, params = load_trained(one.experiment, one.here, TEACHER)

    def tokens(rows, width):
        ids_BT, segment_BT = np.zeros((2, len(rows), width), np.int32)
        for b, row in enumerate(rows):
            ids_BT[b, : len(row)], segment_BT[b, : len(row)] = row, 1
        return Tokens(ids_BT, np.arange(width, dtype=np.int32) * segment_BT, segment_BT)

    decoder = tokens([line["sequence_ids"][:-1] for line in lines], 80)
    encoder = tokens([line["encoder_ids"] for line in lines], 40) if "encoder_ids" in lines[0] else None
    inputs = Inputs(np.zeros(len(lines), np.int32), decoder, encoder)
    logits_BTV = jax.jit(lambda inputs: model.head(params).logits(model.apply(params, inputs)))(inputs)
    logits_BTV = np.asarray(logits_BTV, np.float64)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    order = np.random.default_rng(0).permutation(len(lines))  # the order of a file has no meaning
    sequences = [(lines[i]["sequence_ids"], logp_BTV[i, : len(lines[i]["sequence_ids"]) - 1]) for i in order]
    return writers.lines(path, [form(*sequence, V) for sequence in sequences])


def import_round(one, run, number, folder, **options):
    """Score the texts of a round and import them; return the file."""
    file = score(one, read_lines(run, number), folder / f"scores{number}.jsonl")
    import_logprobs.run(one.experiment, run, [file], one.source, student="own", **options)
    return file


def import_words(file, run, *more):
    options = ["--format", "vllm", "--temperature", "1", "--mode", "raw", "--student", "own"]
    return ["import-logprobs", str(file), "--workdir", str(run.path), *options, *more]


@pytest.mark.parametrize("family", SOURCES)
def test_the_student_is_the_one_that_learned_beside_its_teacher(waiting, family, tmp_path):
    one, run, _ = waiting(family)
    run = copy_of(run, tmp_path / "run")
    import_round(one, run, 1, tmp_path)
    student.run(one.experiment, run)
    for number in range(2):
        texts = [where.round("own", number).outputs()["digest"] for where in (run, one.here)]
        assert texts[0] == texts[1]
        got, want = (Store(where.round_cache("own", number, "topk").path, "records") for where in (run, one.here))
        assert len(got) == len(want) == EXAMPLES
        for i in range(EXAMPLES):
            np.testing.assert_array_equal(got[i]["digest"], want[i]["digest"])
            np.testing.assert_allclose(got[i]["rest_t1"], want[i]["rest_t1"], atol=1e-4)
            np.testing.assert_allclose(*(x[i]["logits"].astype(np.float32) for x in (got, want)), rtol=2e-3, atol=1e-5)
    params = [load_trained(one.experiment, where, "own")[1] for where in (run, one.here)]
    chex.assert_trees_all_close(*params, atol=1e-4)  # an update moves parameters by 5e-3
    inputs = run.model("own").inputs()
    assert "consumed.teacher" not in inputs and "consumed.teacher" in one.here.model("own").inputs()
    assert not (run.path / TEACHER / "checkpoints").exists()


@pytest.mark.parametrize("family", SOURCES)
def test_texts_list_every_example_of_the_round_as_a_decoder_reads_it(waiting, family):
    run = waiting(family)[1]
    for number in range(2):
        store = Store(run.round("own", number).path, "train")
        lines = read_lines(run, number)
        assert [line["example"] for line in lines] == list(range(EXAMPLES)) == list(range(len(store)))
        assert {line["own"] for line in lines} == {True, False}
        for i, line in enumerate(lines):
            example = store[i]
            assert line["own"] == bool(example["own"][0]) and line["ended"] == (line["ids"][-1] == END)
            prompt, completion = example["prompt"].tolist(), example["completion"].tolist()
            assert (line["prompt_ids"], line["ids"]) == (prompt, completion)
            if family == "encoder_decoder":
                assert line["encoder_ids"] == prompt and line["sequence_ids"] == [START, *completion]
            else:
                assert line["sequence_ids"] == [START, *prompt, *completion] and "encoder_ids" not in line


def test_the_commands_say_what_to_run_next(waiting, tmp_path, capsys):
    """`sample` and `student` leave what is finished; each ends with one line, and with exit code 0."""
    one, run, first = waiting("decoder_only")
    run = copy_of(run, tmp_path / "run")
    write_experiment(run, one.experiment)
    request = (
        f"own: round 2 of 2 needs the teacher's scores of {texts_file(run, 1)}. Run `import-logprobs FILES --student "
        "own` with them, then `student` again."
    )
    before = texts_file(run, 1).stat().st_mtime_ns
    for command in ("sample", "student", "run"):
        capsys.readouterr()
        assert main([command, *one.words(run)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == request
    assert texts_file(run, 1).stat().st_mtime_ns == before and not run.evaluation.path.exists()
    assert main(import_words(first, run)) == 2
    error = f"error: {first}: expected the scores of {texts_file(run, 1)}, got the files of round 1. Score the texts of"
    assert error in capsys.readouterr().err
    second = score(one, read_lines(run, 1), tmp_path / "second.jsonl")
    for _ in range(2):
        assert main(import_words(second, run)) == 0
    assert "already done" in capsys.readouterr().err
    assert main(["sample", *one.words(run)]) == 0
    assert capsys.readouterr().out == f"own: round 2 of 2 is in {run.round('own', 1).path}. Run `student`.\n"
    assert main(["run", *one.words(run)]) == 0  # to the report, without a teacher
    assert json.loads((run.report.path / "report.json").read_text())["models"].keys() == {"own"}
    assert main(["sample", *one.words(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"own: already trained, {run.model('own').path}"
    assert main(import_words(first, run, "--force")) == 2
    assert "--force: expected a round that own has not trained on, got round 2. Run `student" in capsys.readouterr().err


def test_scores_of_each_round_have_an_identity(waiting):
    one, run, file = waiting("decoder_only")
    inputs = run.round_cache("own", 0, "topk").inputs()
    assert inputs["imported.files"].keys() == {str(file)} and inputs["imported.temperature"] == 1
    other = dataclasses.replace(one.source, temperature=2.0, mode="processed")
    digest = inputs["imported.files"][str(file)]
    assert inputs["consumed.scores"] == import_logprobs.teacher_digest(one.source, [digest])
    assert inputs["consumed.scores"] != import_logprobs.teacher_digest(other, [digest])
    assert inputs["consumed.scores"] != run.model(TEACHER).outputs()["digest"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": 2.0, "mode": "processed"}, "--temperature: expected 1.0, as in round 1 of own, got 2.0. "),
        ({"mode": "processed"}, "--mode: expected raw, as in round 1 of own, got processed. Score the texts as there"),
        ({"format": "sglang"}, "--format: expected vllm, as in round 1 of own, got sglang. "),
        ({"sequence": "completion"}, "--sequence: expected whole, as in round 1 of own, got completion. "),
    ],
)
def test_scores_that_are_read_otherwise_than_in_the_first_round_are_refused(waiting, tmp_path, changes, message):
    one, run, _ = waiting("decoder_only")
    file = tmp_path / "other"
    file.write_text("{}")
    with pytest.raises(KdError, match=re.escape(message)):
        import_logprobs.run(one.experiment, run, [file], dataclasses.replace(WHOLE, **changes), student="own")


def test_missing_texts_and_those_of_another_round_are_named(waiting, tmp_path):
    one, run, _ = waiting("decoder_only")
    lines = read_lines(run, 1)
    first = next(i for i, line in enumerate(lines) if line["own"])
    file = score(one, [line for line in lines if line["example"] != first], tmp_path / "without.jsonl")
    message = (
        rf"own, round 2 \({texts_file(run, 1)}\): expected .* all \d+ targets, got \d+ .*, first of example {first}\)"
    )
    with pytest.raises(KdError, match=message):
        import_logprobs.run(one.experiment, run, [file], WHOLE, student="own")
    own = [line for line in read_lines(run, 0) if line["own"]]
    file = score(one, own, tmp_path / "old.jsonl")
    with pytest.raises(KdError, match=rf"none of {len(own)} records belongs to an example"):
        import_logprobs.run(one.experiment, run, [file], WHOLE, student="own")
    assert not run.round_cache("own", 1, "topk").finished()


def test_a_wrong_import_is_replaced_before_the_round_is_trained(sampled, tmp_path):
    one, run = sampled
    file = score(one, read_lines(run, 0), tmp_path / "scores.jsonl")
    wrong = dataclasses.replace(WHOLE, temperature=2.0, mode="processed")
    import_logprobs.run(one.experiment, run, [file], wrong, student="own")
    with pytest.raises(KdError, match=r"^--student: expected a round without scores, got own, round 1 .*--force"):
        import_logprobs.run(one.experiment, run, [file], WHOLE, student="own")
    import_logprobs.run(one.experiment, run, [file], WHOLE, force=True, student="own")
    assert run.round_cache("own", 0, "topk").inputs()["imported.temperature"] == 1


def test_a_student_elsewhere_needs_texts_and_a_teacher_here_needs_none(case, sampled, tmp_path, capsys):
    one, run = sampled
    file = tmp_path / "scores.jsonl"
    file.write_text("{}")
    with pytest.raises(
        KdError, match=rf"^students\.own\.targets: expected a teacher .* {run.path}/teacher\. Run `teac"
    ):
        student.run(one.experiment, run)
    with pytest.raises(KdError, match="^--student: expected one of own, got other. Name it"):
        import_logprobs.run(one.experiment, run, [file], WHOLE, student="other")
    with pytest.raises(KdError, match=r"^--student: expected a student, since all that read .*\. Add --student own\.$"):
        import_logprobs.run(one.experiment, run, [file], WHOLE)
    with pytest.raises(KdError, match=rf"^{one.here.path}/teacher: expected a teacher elsewhere beside --student, got"):
        import_logprobs.run(one.experiment, one.here, [file], WHOLE, student="own")
    bare = copied_run(one.here, tmp_path / "bare", "data")
    with pytest.raises(KdError, match=r"^--student: expected texts of own .*, got none\. Run `sample --only own`\.$"):
        import_logprobs.run(one.experiment, bare, [file], WHOLE, student="own")
    assert main(["sample", *one.words(run), "--only", "teacher"]) == 2
    assert "--only: expected one of own, got teacher." in capsys.readouterr().err


def test_an_encoder_decoder_may_be_scored_with_the_prompts_ids(case, waiting, tmp_path):
    """As where two prompts have the same text: the prompt's ids come first, and have no scores."""
    one, run, _ = waiting("encoder_decoder")
    prompts = {tuple(line["sequence_ids"]): line["encoder_ids"] for line in read_lines(run, 0)}
    assert len(prompts) == EXAMPLES

    def with_prompt(tokens, logp, k):
        response = writers.vllm_response(tokens, logp, k)["choices"][0]
        prompt = prompts[tuple(tokens)]
        scores = [None] * len(prompt) + response["prompt_logprobs"][1:]
        return {"prompt_token_ids": prompt + tokens[1:], "prompt_logprobs": scores}

    again = copied_run(one.here, tmp_path / "run", "data")
    assert main(["sample", *one.words(again)]) == 0
    file = score(one, read_lines(again, 0), tmp_path / "whole.jsonl", with_prompt)
    import_logprobs.run(one.experiment, again, [file], WHOLE, student="own")
    got, want = (Store(where.round_cache("own", 0, "topk").path, "records") for where in (again, run))
    for i in range(EXAMPLES):
        chex.assert_trees_all_equal(got[i], want[i])


def test_a_student_that_is_new_in_the_config_has_its_scores_imported(waiting, tmp_path, capsys):
    """`student` stops for scores, and the import that follows knows the student."""
    one, run, _ = waiting("decoder_only")
    run = copy_of(run, tmp_path / "run")
    write_experiment(run, one.experiment)
    config = tmp_path / "config.py"
    more = "new = dataclasses.replace(own, targets=Rounds(count=2, share=1.0, examples=10))\n"
    text = Path(one.config).read_text().replace("experiment = ", f"{more}experiment = ")
    config.write_text(text.replace('{"own": own}', '{"own": own, "new": new}'))
    words = ["--workdir", str(run.path), *SHORT.split()]
    assert main(["student", str(config), *words]) == 0
    requests = capsys.readouterr().out.splitlines()[-1]
    assert "own: round 2 of 2 needs" in requests and "new: round 1 of 2 needs" in requests
    lines = [json.loads(line) for line in (run.round("new", 0).path / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(line["own"] for line in lines)
    assert main([*import_words(score(one, lines, tmp_path / "new.jsonl"), run)[:-1], "new"]) == 0
    assert run.round_cache("new", 0, "topk").finished()


def test_texts_that_were_written_otherwise_are_refused(sampled, capsys):
    one, run = sampled
    assert main(["sample", *one.words(run), "--task.decoding.length", "12"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {run.round('own', 0).path}: expected task.decoding.length = 20, which the folder was made with, got "
        "12. Choose another --workdir, or run `student --force --only own`."
    )


def changed(experiment, **fields):
    own = dataclasses.replace(experiment.students["own"], **fields)
    return dataclasses.replace(experiment, students={"own": own})


def test_what_an_imported_teacher_serves(case):
    experiment = case("decoder_only").experiment
    assert required_signal(experiment) is None  # no cache of the data's own examples
    needed = required_round_signal(experiment, "own")
    assert needed.signal.k == K and list(needed.rests) == [1.0]
    beside = dataclasses.replace(experiment.students["own"], targets=None)
    both = dataclasses.replace(experiment, students=experiment.students | {"kd": beside})
    of_data = required_signal(both)
    assert of_data and of_data.signal.k == K
    for fields, message in (
        ({"init": FromTeacher()}, r"students\.own\.init: expected a start without the imported teacher's parameters"),
        ({"targets": OnPolicy()}, r"students\.own\.targets: expected the data's targets or Rounds, got OnPolicy\."),
        (
            {"targets": Rounds(others=PseudoTargets())},
            r"students\.own\.targets: expected the data's targets or Rounds, got Rounds with texts of the teacher\.",
        ),
        ({"terms": {"kd": Term(forward_kl, signal=Online())}}, r"students\.own\.terms\.kd\.signal: expected TopK, got"),
    ):
        with pytest.raises(KdError, match=message):
            required_signal(changed(experiment, **fields))


def test_the_validation_split_is_imported_before_rounds(case, sampled, tmp_path, capsys):
    """With closeness from a cache, a plain import makes the teacher's folder; later rounds have their own scores."""
    one, run = sampled
    closeness = dataclasses.replace(one.experiment.evaluation, cached_k=4)
    experiment = dataclasses.replace(one.experiment, evaluation=closeness)
    store = Store(run.data.path, "validation")
    examples = [store[i] for i in range(len(store))]
    lines = [{"sequence_ids": [START, *one["prompt"].tolist(), *one["completion"].tolist()]} for one in examples]
    validation = score(one, lines, tmp_path / "validation.jsonl")
    texts = score(one, read_lines(run, 0), tmp_path / "texts.jsonl")
    with pytest.raises(KdError, match="^--student: expected the scores of the validation examples first, got no fin"):
        import_logprobs.run(experiment, run, [texts], WHOLE, student="own")
    import_logprobs.run(experiment, run, [validation], WHOLE)
    import_logprobs.run(experiment, run, [texts], WHOLE, student="own")
    assert run.validation_cache.outputs()["records"] == len(examples)
    assert run.model(TEACHER).inputs()["imported.files"].keys() == {str(validation)}
    with pytest.raises(ScoresNeeded, match="round 2 of 2"):
        student.run(experiment, run)
    assert "own, round 1 (" in capsys.readouterr().out
