"""The task: how much of a document is read, what counts, and the lead that needs no model."""

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


@pytest.mark.parametrize("document_tokens, read", [(0, "abcdef"), (4, "abcd"), (9, "abcdef")])
def test_a_document_is_read_as_far_as_it_says_with_its_end(document_tokens, read):
    task = Summarization(document_tokens=document_tokens)
    (encoded,) = task.encode(EXAMPLE, Letters())
    assert encoded.prompt.tolist() == [*map(ord, read), Letters.eos]
    assert task.encode_prompt(task.prompt(EXAMPLE), Letters()).tolist() == encoded.prompt.tolist()  # trap 14
    assert encoded.completion.tolist() == [*map(ord, "ab"), Letters.eos]


def test_the_summary_counts_its_end_included():
    (encoded,) = Summarization().encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [False] * 7 + [True] * 3
    (encoded,) = Summarization(counted="all").encode(EXAMPLE, Letters())
    assert encoded.counts.tolist() == [True] * 10


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"summary": "document"}, r"task: document, summary .* are document, document; wanted different fields"),
        ({"references": ("a", "a")}, r"task: .* are document, summary, a, a; wanted different fields"),
        ({"document_tokens": -1}, r"task\.document_tokens: -1; wanted a whole number of at least 0"),
        ({"lead_sentences": 0}, r"task\.lead_sentences: 0; wanted a whole number of at least 1"),
        ({"counted": "summary"}, r"task\.counted: 'summary'; wanted completion or all"),
        ({"decoding": Decoding(length_ratio=-1)}, r"task\.decoding\.length_ratio: -1; wanted 0 to 100"),
    ],
)
def test_what_does_not_fit_is_told(fields, message):
    with pytest.raises(KdError, match=message):
        Summarization(**fields).check()


def test_rouge_l_is_the_headline_and_the_length_has_no_direction():
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
    assert task.closeness("a big cat sat", "the cat sat") == pytest.approx(100 * 2 * 2 / 7)


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
def test_a_sentence_ends_where_a_reader_would_end_it(document, first, rest):
    assert lead(document, 1) == first
    assert lead(document, 9) == document
    assert document.removeprefix(first).strip() == rest


@given(st.text("ab .A\n。", max_size=30), st.integers(1, 4))
def test_a_lead_begins_the_document_and_grows(document, sentences):
    one, more = lead(document, sentences), lead(document, sentences + 1)
    assert document.strip().startswith(more) and more.startswith(one)
    assert bool(one) == bool(document.strip())
    assert lead(document, len(document) + 1) == document.strip()


def test_the_lead_is_a_baseline():
    baselines = Summarization(lead_sentences=2).baselines
    assert baselines["lead"]({"document": "One. Two. Three."}) == "One. Two."


def test_both_families_serve_it():
    assert set(Summarization.families) == {"encoder_decoder", "decoder_only"}
    assert np.isclose(Summarization().decoding.most(400), 116)
