"""Summarization: truncated documents, tokens that count, ROUGE, and the baseline of first sentences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.tasks.base import Decoding
from kd_jax.tasks.metrics import Outcome
from kd_jax.tasks.summarization import Summarization, lead
from tests.tasks.letters import Letters

EXAMPLE = {"document": "abcdef", "summary": "ab", "second": "ef"}


@pytest.mark.parametrize("document_tokens, truncated", [(0, "abcdef"), (4, "abcd"), (9, "abcdef")])
def test_document_is_truncated_and_has_its_end_token(document_tokens, truncated):
    task = Summarization(document_tokens=document_tokens)
    (encoded,) = task.encode(EXAMPLE, Letters())
    assert encoded.prompt.tolist() == [*map(ord, truncated), Letters.eos]
    assert task.encode_prompt(task.prompt(EXAMPLE), Letters()).tolist() == encoded.prompt.tolist()  # trap 14
    assert encoded.completion.tolist() == [*map(ord, "ab"), Letters.eos]


def test_summary_counts_with_its_end_token():
    (encoded,) = Summarization().encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [False] * 7 + [True] * 3
    (encoded,) = Summarization(counted="all").encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [True] * 10


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"summary": "document"}, r"task: expected different fields for document, summary .*, got document, document"),
        ({"references": ("a", "a")}, r"task: expected different fields .*, got document, summary, a, a"),
        ({"document_tokens": -1}, r"task\.document_tokens: expected an integer in \[0, \d+\], got -1"),
        ({"lead_sentences": 0}, r"task\.lead_sentences: expected an integer in \[1, \d+\], got 0"),
        ({"counted": "summary"}, r"task\.counted: expected completion or all, got 'summary'"),
        (
            {"decoding": Decoding(length_ratio=-1)},
            r"decoding\.length_ratio: expected a number from 0 to 100, got -1",
        ),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(KdError, match=message):
        Summarization(**fields).check()


def test_rouge_l_is_the_headline():
    task = Summarization(references=("second",))
    outcome = Outcome([EXAMPLE], ["a big cat sat"], [["the cat sat", "a big dog sat down"]])
    assert task.references_of(EXAMPLE) == ["ab", "ef"]
    scores = {metric.name: metric.score(outcome, 0).value for metric in task.metrics}
    # L: "a big sat" is 3 of 4 and 3 of 5 words; 2: "a big" is 1 of 3 and 1 of 4, "cat sat" is 1 of 3 and 1 of 2
    expected = {
        "rouge_l": 100 * 2 * 3 / 9,
        "rouge_1": 100 * 2 * 3 / 9,
        "rouge_2": 100 * 2 / 5,
        "length_ratio": 13 / 14.5,
    }
    assert scores == pytest.approx(expected) and next(iter(scores)) == "rouge_l"
    assert [metric.higher_is_better for metric in task.metrics] == [True, True, True, None]
    assert task.similarity("a big cat sat", "the cat sat") == pytest.approx(100 * 2 * 2 / 7)


@pytest.mark.parametrize(
    "document, first, rest",
    [
        ("It rained. Then it snowed.", "It rained.", "Then it snowed."),
        ("Is it so? Yes.", "Is it so?", "Yes."),
        ("He said “no.” She left.", "He said “no.”", "She left."),
        ("Mr. J. Smith of the U.S. Army left. So it was.", "Mr. J. Smith of the U.S. Army left.", "So it was."),
        ("It costs 3.50 at example.com today. Buy.", "It costs 3.50 at example.com today.", "Buy."),
        ("Wait... what? Yes.", "Wait... what?", "Yes."),
        ("A headline\n\nA text. And more.", "A headline", "A text. And more."),
        ("It rained. \n\n Then it snowed.", "It rained.", "Then it snowed."),
        ("A line that\ngoes on. The next.", "A line that\ngoes on.", "The next."),
        ("他说:「走吧。」我们走了。", "他说:「走吧。」", "我们走了。"),
        ("Été. Écrit.", "Été.", "Écrit."),
    ],
)
def test_lead_is_the_first_sentence(document, first, rest):
    assert lead(document, 1) == first
    assert lead(document, 9) == document
    assert document.removeprefix(first).strip() == rest


@given(st.text("ab .A\n。", max_size=30), st.integers(1, 4))
def test_lead_is_a_prefix_that_grows_with_sentences(document, sentences):
    one, more = lead(document, sentences), lead(document, sentences + 1)
    assert document.strip().startswith(more) and more.startswith(one)
    assert bool(one) == bool(document.strip())
    assert lead(document, len(document) + 1) == document.strip()


def test_baseline_is_the_lead():
    baselines = Summarization(lead_sentences=2).baselines
    assert baselines["lead"]({"document": "One. Two. Three."}) == "One. Two."


def test_both_families_can_summarize():
    assert set(Summarization.families) == {"encoder_decoder", "decoder_only"}
    assert np.isclose(Summarization().decoding.max_length(400), 116)
