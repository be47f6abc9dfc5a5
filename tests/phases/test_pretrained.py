"""A pretrained teacher from a folder: read, distilled, and its student exported in the same layout."""

import dataclasses

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError
from kd_jax.experiment import resolve
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.huggingface.read import read_model
from kd_jax.phases import cache, evaluate, export, plan, prepare, report, student, teacher
from kd_jax.phases.check import check
from kd_jax.phases.workdirs import read_experiment, write_experiment
from kd_jax.students.init import FromTeacher, Random
from kd_jax.students.pretrained import FromHuggingFace, Smaller
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.translation import Translation
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from kd_jax.tokenizers.sentencepiece import SentencePiece
from kd_jax.training.model import initial_params, load_trained
from tests.helpers.pretrained import write_pretrained
from tests.helpers.runs import smoke

LAYERS = {"decoder_only": {"layers": 1}, "encoder_decoder": {"decoder_layers": 1}}
STEPS = ["--students.student_kd.training.steps", "4", "--students.student_kd.training.eval-every", "4"]
STEPS += ["--buckets", "40", "--students.student_kd.training.optimizer.warmup", "2"]


def pretrained_experiment(root, folder, family, other="", cut=False):
    """Return the smoke experiment with the folder's model as its teacher, and one student."""
    base = smoke(root, STEPS)
    as_it_is = dataclasses.replace(base.teacher.training, steps=0)
    given = dataclasses.replace(base.teacher, model=None, init=FromHuggingFace(str(folder)), training=as_it_is)
    smaller = dataclasses.replace(base.students["student_kd"], model=Smaller(**LAYERS[family]))
    return dataclasses.replace(
        base,
        teacher=given,
        students={"student_kd": smaller},
        comparison=None,
        tokenizer=HuggingFaceTokenizer(other, cut=cut),
        task=Translation(source="en", target="fr", decoding=Decoding(beam=1, length_ratio=0.0, length=16)),
    )


@pytest.fixture(
    scope="module",
    params=[("decoder_only", True), pytest.param(("encoder_decoder", False), marks=pytest.mark.extended)],
    ids=lambda p: p[0],
)
def run(request, root, tmp_path_factory, lax_promotion):
    """(family, folder, experiment, workdir of a whole run)."""
    (family, cut), path = request.param, tmp_path_factory.mktemp("run")
    folder = write_pretrained(path / "model", family, rows=0 if cut else 136)
    experiment = resolve(pretrained_experiment(root, folder, family, cut=cut))
    check(experiment)
    workdir = Workdir(path / "w")
    for phase in (prepare, teacher, cache, student, evaluate, report):
        phase.run(experiment, workdir)
    write_experiment(workdir, experiment)
    return family, folder, experiment, workdir


def test_the_teacher_is_the_folder_s_model(run):
    _, folder, experiment, workdir = run
    _, theirs = read_model(folder)
    network = experiment.teacher.model.build(workdir.data.outputs()["vocab_size"])
    ours = checkpoint.load_params(workdir.model("teacher"), network.init)
    if experiment.tokenizer.cut:
        rows_V = np.load(workdir.data.file("tokenizer_rows.npy"))
        assert len(rows_V) < len(theirs["embedding"])
        theirs = theirs | {"embedding": theirs["embedding"][rows_V]}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert workdir.model("teacher").outputs()["steps"] == 0


def test_the_student_has_the_requested_sizes(run):
    family, _, experiment, _ = run
    shrunk = experiment.students["student_kd"].model
    assert dataclasses.replace(shrunk, **{name: 3 for name in LAYERS[family]}) == experiment.teacher.model
    assert shrunk.stacks()["decoder"] == 1


def test_a_student_may_be_narrower_than_the_pretrained_model(run):
    """Its embedding has the teacher's rows and some of the teacher's channels."""
    _, _, experiment, workdir = run
    recipe = dataclasses.replace(
        experiment.students["student_kd"],
        model=Smaller(d_model=8, heads=2, d_ff=12).resolve(experiment.teacher.model),
        init=FromTeacher(sample=20),
    )
    recipe.init.check(experiment.teacher.model, recipe.model)
    params, vocab_size = initial_params(experiment, workdir, recipe), workdir.data.outputs()["vocab_size"]
    shapes = jax.eval_shape(recipe.model.build(vocab_size).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    network = experiment.teacher.model.build(vocab_size)
    theirs_VD = checkpoint.load_params(workdir.model("teacher"), network.init)["embedding"]
    cosine_DD = _unit(params["embedding"]).T @ _unit(theirs_VD)
    assert len(set(cosine_DD.argmax(1).tolist())) == 8
    np.testing.assert_allclose(cosine_DD.max(1), 1.0, rtol=1e-5)


def _unit(x_VD):
    return np.asarray(x_VD) / np.linalg.norm(x_VD, axis=0)


def test_the_report_has_both_models(run):
    models = manifest.read_json(run[3].report.file("report.json"))["models"]
    assert set(models) == {"teacher", "student_kd"}
    assert models["teacher"]["train_tokens_per_second"] is None


def test_the_exported_student_is_read_back_unchanged(run, tmp_path):
    family, _, experiment, workdir = run
    export.run(read_experiment(workdir), workdir, tmp_path / "student", "student_kd")
    again, params = read_model(tmp_path / "student")
    network = experiment.students["student_kd"].model.build(workdir.data.outputs()["vocab_size"])
    ours = checkpoint.load_params(workdir.model("student_kd"), network.init)
    if experiment.tokenizer.cut:
        jax.tree.map(np.testing.assert_array_equal, ours, params)
    library = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    tokenizer = experiment.tokenizer.load(workdir.data.path)
    for example in manifest.read_lines(workdir.data.file("validation.jsonl"))[:5]:
        assert library.encode(example["en"], add_special_tokens=False).ids == tokenizer.encode(example["en"])
    settings = manifest.read_json(tmp_path / "student" / "config.json")
    assert settings["eos_token_id"] == tokenizer.eos
    assert (family == "encoder_decoder") == ("decoder_start_token_id" in settings)


@pytest.mark.extended
def test_a_plan_needs_no_training(run, capsys):
    _, _, experiment, workdir = run
    untaught = Workdir(workdir.path.parent / "untaught")
    untaught.path.mkdir(exist_ok=True)
    (untaught.path / "data").symlink_to(workdir.path / "data")
    plan.run(experiment, untaught)
    assert "hours to write" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [0, 3])
def test_bfloat16_is_refused_for_training(run, steps):
    _, folder, experiment, workdir = run
    recipe = dataclasses.replace(
        experiment.teacher,
        init=FromHuggingFace(str(folder), dtype="bfloat16"),
        training=dataclasses.replace(experiment.teacher.training, steps=steps),
    )
    changed = dataclasses.replace(experiment, teacher=recipe)
    if steps:
        with pytest.raises(KdError, match="teacher.init.dtype: expected float32 for 3 training steps, got bfloat16"):
            check(changed)
        return
    check(changed)
    half = Workdir(workdir.path.parent / "half")
    half.path.mkdir(exist_ok=True)
    (half.path / "data").symlink_to(workdir.path / "data")
    teacher.run(changed, half)
    losses = [where.model("teacher").outputs()["valid_cross_entropy"] for where in (workdir, half)]
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.02 * losses[0]
    _, params = load_trained(changed, half, "teacher")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    first = initial_params(changed, half, changed.students["student_kd"])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(first)} == {"float32"}


def with_teacher(experiment, **changes):
    return dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, **changes))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: with_teacher(e, init=FromHuggingFace("nowhere")), "teacher.init.folder: .*nowhere"),
        (lambda e: with_teacher(e, init=Random()), "teacher.model: expected a model, got None"),
        (lambda e: with_teacher(e, model=Smaller(layers=1)), "teacher.model: expected a model, got Smaller"),
        (lambda e: with_teacher(e, model=EncoderDecoder(3, 3)), "teacher.*model.d_model: .*128"),
        (
            lambda e: dataclasses.replace(e, tokenizer=SentencePiece(60)),
            "teacher.init: expected tokenizer=HuggingFaceTokenizer",
        ),
    ],
)
def test_an_invalid_teacher_is_refused_before_any_work(root, tmp_path, change, message):
    folder = write_pretrained(tmp_path / "model", "encoder_decoder")
    with pytest.raises(KdError, match=message):
        check(resolve(change(pretrained_experiment(root, folder, "encoder_decoder"))))


def test_a_field_that_the_family_lacks_is_named(root, tmp_path):
    folder = write_pretrained(tmp_path / "model", "encoder_decoder")
    with pytest.raises(KdError, match="model.layers: expected 0, since a encoder_decoder teacher has no layers, got 1"):
        resolve(pretrained_experiment(root, folder, "decoder_only"))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(root, tmp_path):
    folder, larger = (
        write_pretrained(tmp_path / "model", "encoder_decoder"),
        write_pretrained(tmp_path / "other", "decoder_only"),
    )
    experiment = resolve(pretrained_experiment(root, folder, "encoder_decoder", other=str(larger)))
    workdir = Workdir(tmp_path / "w")
    with pytest.raises(KdError, match="rows"):
        prepare.run(experiment, workdir)
        teacher.run(experiment, workdir)


def test_a_student_can_start_from_a_pretrained_model(root, tmp_path):
    folder = write_pretrained(tmp_path / "model", "decoder_only")
    experiment = pretrained_experiment(root, folder, "decoder_only")
    recipe = dataclasses.replace(experiment.students["student_kd"], model=None, init=FromHuggingFace(str(folder)))
    experiment = resolve(dataclasses.replace(experiment, students={"student_kd": recipe}))
    check(experiment)
    assert experiment.students["student_kd"].model == experiment.teacher.model
