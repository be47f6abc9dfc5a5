"""The task: what counts is said here once; scores are sacreBLEU's."""

import numpy as np
import pytest
import sacrebleu

from kd_jax.data.tokenizers import EOS
from kd_jax.errors import KdError
from kd_jax.tasks.translation import Translation, bleu, chrf


class Letters:
    """A tokeniser of letters."""

    eos = EOS

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_every_target_counts_the_end_included():
    encoded = Translation().encode({"en": "ab", "fr": "cde"}, Letters())
    assert encoded.prompt.tolist() == [97, 98, EOS]
    assert encoded.completion.tolist() == [99, 100, 101, EOS]
    assert encoded.counts.tolist() == [True] * 4
    empty = Translation().encode({"en": "a", "fr": ""}, Letters())
    assert empty.completion.tolist() == [EOS] and empty.counts.tolist() == [True]


def test_a_prompt_alone_is_encoded_as_with_its_completion():
    """Trap 14."""
    task, example = Translation(), {"en": "ab", "fr": "cde"}
    alone = task.encode_prompt(task.prompt(example), Letters())
    assert alone.tolist() == task.encode(example, Letters()).prompt.tolist()


def test_one_field_cannot_be_both_sides():
    with pytest.raises(KdError, match=r"task\.target: 'en', as task\.source; wanted two fields"):
        Translation(target="en").check()


RNG = np.random.default_rng(0)
WORDS = ["le", "chat", "noir", "dort", "sur", "un", "toit", "rouge"]
REFERENCES = [" ".join(RNG.choice(WORDS, 8)) for _ in range(60)]
HYPOTHESES = [" ".join([*reference.split()[:6], *RNG.choice(WORDS, 2)]) for reference in REFERENCES]


@pytest.mark.parametrize("score, theirs", [(bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)])
def test_scores_are_sacrebleus_and_intervals_hold_them(score, theirs):
    scored = score(HYPOTHESES, REFERENCES, bootstrap=200)
    assert scored.value == theirs(HYPOTHESES, [REFERENCES]).score
    low, high = scored.interval
    assert low < scored.value < high and high - low < 15
    assert scored == score(HYPOTHESES, REFERENCES, bootstrap=200)
    assert score(HYPOTHESES, REFERENCES).interval is None
    assert score(REFERENCES, REFERENCES).value > 99.99
    assert score(["x"] * 9, REFERENCES[:9], bootstrap=20).interval == (0.0, 0.0)


def test_bleu_is_the_headline_and_says_how_it_was_computed():
    headline, second = Translation().metrics
    assert (headline.name, headline.score, second.name, second.score) == ("bleu", bleu, "chrf", chrf)
    assert headline.higher_is_better and "tok:13a" in headline.score(HYPOTHESES, REFERENCES, 0).signature


def test_closeness_ranks_texts_by_sentence_bleu():
    closeness = Translation().closeness
    assert closeness(HYPOTHESES[0], REFERENCES[0]) == sacrebleu.sentence_bleu(HYPOTHESES[0], [REFERENCES[0]]).score
    assert closeness(REFERENCES[0], REFERENCES[0]) > closeness(HYPOTHESES[0], REFERENCES[0])


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_a_nearly_dead_model_is_scored(metric):
    """One line of forty is right, so some resamples hold nothing right: sacreBLEU mixes types and raised TypeError."""
    references = ["a b c d e f"] + [f"x y z w v {i}" for i in range(40)]
    score = metric(["a b c d e f"] + ["q"] * 40, references, 200)
    low, high = score.interval
    assert 0 <= low < score.value < high < 20
    dead = metric([""] * 41, references, 50)
    assert dead.value == 0 and dead.interval == (0, 0)
