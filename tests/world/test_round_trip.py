"""What a tokenizer cannot write: the normalisation rule, the warning of prepare, the score beside the baselines."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import sacrebleu
import tokenizers

from kd_jax import Files, SentencePiece, Translation
from kd_jax.artifacts.workdir import Workdir
from kd_jax.errors import KdError
from kd_jax.phases import evaluate, prepare
from kd_jax.tasks.eval_set import EvalSet, round_trip_score
from kd_jax.tasks.metrics import bits_per_byte
from tests.helpers.runs import smoke
from tests.helpers.tokenizers import prepare_tokenizer

# Persian joins a prefix to its verb with U+200C, which is not a space.
PERSIAN = [
    "من نمی\u200cدانم چه می\u200cگوید",
    "آن\u200cها به خانه\u200cهای خود می\u200cروند",
    "کتاب\u200cهایم را می\u200cخواهم",
    "او نمی\u200cتواند بیاید",
]
CHINESE = ["我们非常喜欢这只黑色的猫。", "这座房子很大,也很旧。", "今天北京下了一场大雨。"]


def experiment_of(root, path, texts, task, **tokenizer):
    """An experiment whose three splits have these references."""
    paths = {}
    for split in ("train", "validation", "test"):
        rows = [{task.source: f"{split} {i} text", task.target: text} for i, text in enumerate(texts)]
        paths[split] = (str(path / f"{split}.jsonl"),)
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SentencePiece(model_type="bpe", byte_fallback=True, vocab_size=310, **tokenizer)
    return dataclasses.replace(smoke(root, []), source=Files(**paths), task=task, tokenizer=settings, students={})


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"])
def test_normalization_is_sentencepieces_rule(tmp_path, rule):
    tokenizer = prepare_tokenizer(SentencePiece(310, "bpe", byte_fallback=True, normalization=rule), tmp_path, PERSIAN)
    expected = {
        "nmt_nfkc": "A fi x y",
        "nmt_nfkc_cf": "a fi x y",
        "nfkc": "A fi x\u200cy",
        "nfkc_cf": "a fi x\u200cy",
        "identity": "A ﬁ x\u200cy",
    }
    text = "A ﬁ x\u200cy"
    assert tokenizer.decode(tokenizer.encode(text)) == expected[rule]
    tokenizer.export(tmp_path, "encoder_decoder", True)
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for one in (*PERSIAN, text):
        assert exported.encode(one, add_special_tokens=False).ids == tokenizer.encode(one)


def test_an_unknown_rule_is_refused():
    with pytest.raises(KdError, match=r"tokenizer\.normalization: expected nmt_nfkc, .*got 'nfc'"):
        SentencePiece(normalization="nfc").check()  # pyright: ignore[reportArgumentType]


def test_prepare_warns_and_evaluate_scores_what_the_tokenizer_cannot_write(root, tmp_path, capsys):
    task = Translation("en", "fa")
    written = [text.replace("\u200c", " ") for text in PERSIAN]
    score = sacrebleu.corpus_bleu(written, [PERSIAN]).score
    assert score < 20
    for rule in ("nmt_nfkc", "nfkc"):
        folder = tmp_path / rule
        folder.mkdir()
        experiment = experiment_of(root, folder, PERSIAN, task, normalization=rule)
        workdir = Workdir(folder / "work")
        prepare.run(experiment, workdir)
        warned = f"warning: BLEU of the references is {score:.2f} once" in capsys.readouterr().err
        context = SimpleNamespace(
            experiment=experiment,
            eval_set=EvalSet.load(workdir.data, "test", 0),
            tokenizer=experiment.tokenizer.load(workdir.data.path),
        )
        baselines = evaluate.score_baselines(context)
        if rule == "nfkc":
            assert not warned and list(baselines) == ["copy"]
        else:
            assert warned and list(baselines) == ["copy", "round_trip"]
            assert baselines["round_trip"]["bleu"].value == score
            assert baselines["round_trip"]["chrf"].value == sacrebleu.corpus_chrf(written, [PERSIAN]).score


def test_prepare_refuses_a_metric_that_cannot_read_the_references(root, tmp_path):
    """Before any training; the option changes no prepared file, so the same workdir goes on."""
    experiment = experiment_of(root, tmp_path, CHINESE, Translation("en", "target"))
    workdir = Workdir(tmp_path / "work")
    with pytest.raises(KdError, match=r"^task\.tokenize: .*got 13a, which the language 'target' has by default"):
        prepare.run(experiment, workdir)
    prepare.run(dataclasses.replace(experiment, task=Translation("en", "target", tokenize="zh")), workdir)
    assert workdir.data.finished()


def test_a_metric_of_tokens_has_no_round_trip(root):
    metric = bits_per_byte(lambda example: example["text"])
    outcome = EvalSet([{"en": "a", "fr": "b c d e f"}], [0]).text_outcome(Translation(), ["b c d e f"])
    assert round_trip_score(metric, outcome) is None
    bleu = Translation().metrics[0]
    assert round_trip_score(bleu, outcome) is None and round_trip_score(bleu, outcome._replace(texts=["x"])) == 0
