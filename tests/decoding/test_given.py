"""What is given to every text and what none holds: identities with the teacher-forced model, in both families."""

import jax
import numpy as np
import pytest

from kd_jax.batches.layouts import DecoderOnlyLayout, EncoderDecoderLayout
from kd_jax.decoding.base import suppress
from kd_jax.decoding.beam import beam_search
from kd_jax.decoding.exported import prompts
from kd_jax.decoding.greedy import greedy
from kd_jax.decoding.sampling import sample
from kd_jax.tasks.base import Sampling
from kd_jax.tokenizers.sentencepiece import START
from tests.decoding import searched, test_decoder_only
from tests.decoding.searched import ENDS, EOS, LENGTH, SOURCES, V

OPENING, OPENED = (4, 5), EncoderDecoderLayout(START, (4, 5))
NEVER = [v for v in range(V) if v not in (EOS, 3)]  # ids that are barred here
FAMILIES = {
    "encoder_decoder": (
        searched.MODEL,
        searched.PARAMS,
        EncoderDecoderLayout,
        lambda s, ids: searched.logits_of(s, [ids])[0],
    ),
    "decoder_only": (
        test_decoder_only.MODEL,
        test_decoder_only.PARAMS,
        DecoderOnlyLayout,
        test_decoder_only.logits_of,
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def up_to_end(ids_T):
    ids = np.asarray(ids_T).tolist()
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


@each_family
def test_a_text_goes_on_from_what_is_given(family):
    model, params, layout, logits_of = family
    written = greedy(model, params, layout(START, OPENING).prompts(SOURCES, 5, 4), **ENDS)
    for source, ids_T in zip(SOURCES, written, strict=False):
        whole = [*OPENING, *up_to_end(ids_T)]
        assert whole[2:] == logits_of(source, whole).argmax(-1).tolist()[2:]


@each_family
def test_what_is_barred_is_not_written_and_has_no_share(family):
    model, params, layout, logits_of = family
    given, suppressed = layout(START).prompts(SOURCES, 5, 4), suppress(model, tuple(NEVER))
    tokens = [greedy(suppressed, params, given, **ENDS), sample(suppressed, params, given, sampling=Sampling(1.0), **ENDS)]
    found = jax.device_get(beam_search(suppressed, params, given, beam=2, alpha=0.0, **ENDS))
    assert not set(NEVER) & {int(i) for ids in (*tokens, found.ids_BKT) for i in np.ravel(ids)}
    for source, ids_KT, logp_K in zip(SOURCES, found.ids_BKT, found.logp_BK, strict=False):
        text = up_to_end(ids_KT[0])
        logits_TV = np.array(logits_of(source, text))
        logits_TV[:, NEVER] = -np.inf
        logp_TV = np.asarray(jax.nn.log_softmax(logits_TV))
        np.testing.assert_allclose(logp_K[0], logp_TV[np.arange(len(text)), text].sum(), rtol=1e-4)


@pytest.mark.parametrize("forced_prefix", [(), (9,), (9, 8)])
@each_family
def test_exported_programs_are_given_the_same(family, forced_prefix):
    layout, width = family[2], 4
    wanted = layout(START, forced_prefix).prompts(SOURCES, len(SOURCES), width)
    ids_BS = np.full((len(SOURCES), width), 7, np.int32)  # what stands behind a prompt is not looked at
    for row, ids in zip(ids_BS, SOURCES, strict=True):
        row[: len(ids)] = ids
    lengths_B = np.array([len(ids) for ids in SOURCES], np.int32)
    begins = (START, *forced_prefix)
    ours = prompts(ids_BS, lengths_B, layout is EncoderDecoderLayout, begins)
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def test_the_room_is_for_what_is_written():
    assert greedy(searched.MODEL, searched.PARAMS, OPENED.prompts(SOURCES, 5, 4), **ENDS).shape == (5, LENGTH)
