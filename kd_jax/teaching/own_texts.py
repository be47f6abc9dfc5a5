"""Texts that a student writes while it trains, to learn from the teacher's judgement of them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from kd_jax.batches.on_policy import OwnTextRule, Prompt
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PromptBatches
from kd_jax.decoding.base import NO_TOKEN, suppress
from kd_jax.decoding.sampling import sample
from kd_jax.decoding.text import TextTokens, output_length
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.models.base import Architecture, Model
from kd_jax.models.stack import unstack_layers
from kd_jax.runtime import hosts, preemption
from kd_jax.runtime.backends import local_devices
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.mesh import to_own_host
from kd_jax.runtime.progress import Bar
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Array, Inputs, Params


def own_text_step(
    params: Params,
    inputs: Inputs,
    *,
    model: Model,
    architecture: Architecture,
    decoding: Decoding,
    tokens: TextTokens,
    longest: int,
) -> Array:
    """Write a text for each prompt, int32 [B, T], the end token included, NO_TOKEN (-1) after it.

    The model's own distribution decides: no end is forced, and of the rules of decoding none holds but tokens that are
    never written. Draws depend on (decoding.sampling.seed, inputs.index_B, position).
    """
    return sample(
        suppress(model, tokens.suppress_tokens),
        params,
        inputs,
        eos=tokens.ends,
        length=min(longest, output_length(decoding, architecture, inputs)),
        sampling=decoding.sampling,
        rules=tokens._replace(force_end=False).rules(decoding),
    )


class OwnTextWriter:
    """Writes the texts of a student for prompts; several hosts divide the batches.

    The texts depend neither on the number of devices nor on the other prompts, but for rounding.
    """

    def __init__(self, experiment: ResolvedExperiment, recipe: ResolvedRecipe, rule: OwnTextRule, tokenizer: Tokenizer):
        """Prepare a student's decoding; nothing is compiled yet."""
        task, last = experiment.task, experiment.shapes[-1]
        self.ends = tokenizer.ends
        self.widths = experiment.prompt_widths if task.prompted else (rule.beginning,)
        self._layout = recipe.model.layout(tokenizer.start, tokenizer.forced_prefix)
        self._devices: Devices = local_devices(experiment.backend, experiment.mesh)
        self._model = recipe.model.build(tokenizer.vocab_size)
        sampling = rule.sampling(experiment.seed)
        decoding = dataclasses.replace(task.decoding, sampling=sampling, min_length=0, no_repeat_ngram=0)
        decoding = dataclasses.replace(decoding, no_source_ngram=0)
        if not task.prompted:
            decoding = dataclasses.replace(decoding, length=last.completion - 1, length_ratio=0.0)
        self._program = self._devices.compile(
            functools.partial(
                own_text_step,
                model=self._model,
                architecture=recipe.model,
                decoding=decoding,
                tokens=TextTokens.of(tokenizer),
                longest=rule.length or sum(last),
            )
        )

    def write(
        self, params: Params, prompts: Sequence[Prompt], bar: Bar, advance: bool = False
    ) -> list[np.ndarray] | None:
        """Return a text for each prompt, int32 [T], cut to its room; None if the run was asked to stop.

        Args:
          params: single or global arrays, as of a training state; layers may be stacked.
          prompts: none longer than the last of `widths`.
          bar: shows the progress.
          advance: whether it is a bar of texts.
        """
        process, devices = hosts.process(), self._devices
        params = to_own_host(unstack_layers(params))
        placed = devices.replicate(params, self._model.axes(params))
        numbers = [prompt.number for prompt in prompts]
        batches = PromptBatches(
            [prompt.ids for prompt in prompts], self._layout, self.widths, INFERENCE_BATCH_SIZE, devices.count, numbers
        )
        own = range(process.index, len(batches), process.count)
        parts: list[list[tuple[int, list[int]]]] = []
        for done, i in enumerate(own):
            if preemption.may_stop_alone():
                bar.show("")
                return None
            if not advance:
                bar.show(f"own texts, batch {done + 1} of {len(own)}")
            width, indices = batches.plan[i]
            with bar.compiling_once(f"own texts {width}"):
                rows = devices.to_host(self._program(placed, devices.shard(batches[i])))
            parts.append([(int(n), rows[b][rows[b] != NO_TOKEN].tolist()) for b, n in enumerate(indices)])
            if advance:
                bar.advance(len(indices))
        bar.show("")
        texts = {n: ids for part in hosts.all_gather(parts) for n, ids in part}
        return [np.asarray(texts[prompt.number][: prompt.room], np.int32) for prompt in prompts]


def distinct_pairs(texts: Sequence[np.ndarray]) -> float:
    """Return distinct-2 within texts: different pairs of neighbouring tokens over all pairs, each text by itself.

    Examples:
      >>> distinct_pairs([np.array([5, 6, 5, 6]), np.array([7, 8])])  # 56, 65; 78: three of four
      0.75
    """
    different = sum(len(set(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))) for text in texts)
    total = sum(max(0, len(text) - 1) for text in texts)
    return different / total if total else 1.0
