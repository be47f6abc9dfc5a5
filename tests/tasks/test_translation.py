"""The task: the mask is made here once; scores are sacreBLEU's."""

import numpy as np
import sacrebleu

from kd_jax.data.tokenizers import EOS
from kd_jax.tasks.translation import Translation


class Letters:
    """A tokeniser of letters."""

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_every_target_counts_the_end_included():
    encoded = Translation().encode({"en": "ab", "fr": "cde"}, Letters(), EOS)
    assert encoded["source"].tolist() == [97, 98, EOS]
    assert encoded["target"].tolist() == [99, 100, 101, EOS]
    assert encoded["mask"].tolist() == [True] * 4
    empty = Translation().encode({"en": "a", "fr": ""}, Letters(), EOS)
    assert empty["target"].tolist() == [EOS] and empty["mask"].all()


def test_scores_are_sacrebleus_and_intervals_hold_them():
    rng = np.random.default_rng(0)
    words = ["le", "chat", "noir", "dort", "sur", "un", "toit", "rouge"]
    references = [" ".join(rng.choice(words, 8)) for _ in range(60)]
    hypotheses = [" ".join([*r.split()[:6], *rng.choice(words, 2)]) for r in references]
    score = Translation().score(hypotheses, references, bootstrap=200)
    assert score["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert score["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    low, high = score["bleu_ci"]
    assert low < score["bleu"] < high and high - low < 15
    assert score == Translation().score(hypotheses, references, bootstrap=200)
    assert "tok:13a" in score["signature"]
    assert Translation().score(references, references)["bleu"] > 99.99
    assert Translation().score(["x"] * 9, references[:9], bootstrap=20)["bleu_ci"] == [0.0, 0.0]
