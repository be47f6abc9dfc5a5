"""On-policy batches over examples in memory, texts for them, and what a batch holds of each text."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.batches.layouts import Bucket, Layout, Segment
from kd_jax.batches.on_policy import OnPolicy, OnPolicyBatches, PooledExamples, Prompt
from kd_jax.batches.pipeline import TrainPlan, example_lengths
from kd_jax.tasks.base import Encoded
from kd_jax.types import Batch

END = 2
Write = Callable[[Prompt], np.ndarray]


class ListedSplit:
    """Examples in memory, with the members of a split that batches use."""

    def __init__(self, examples: Sequence[Encoded], name: str = "train"):
        self.name, self._examples = name, examples
        self.lengths = example_lengths([one._asdict() for one in examples])

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, i: int) -> Segment:
        return Segment(int(i), self._examples[i], 1.0, {})

    def batch(self, layout, rows, count, bucket) -> Batch:
        return layout.batch([[self.read(i) for i in row] for row in rows], count, bucket, {})


def own_batches(
    examples: Sequence[Encoded],
    rule: OnPolicy,
    layout: Layout,
    buckets: Sequence[Bucket],
    *,
    without: Sequence[Encoded] = (),
    prompted: bool = True,
    max_prompt: int = 0,
    packed: bool = False,
    tokens_per_batch: int = 32,
    seed: int = 0,
    **options,
) -> OnPolicyBatches:
    """Return the batches of examples with a target and of some `without`; prompts up to the last bucket's length."""
    pooled = PooledExamples(ListedSplit(examples), [ListedSplit(without)] if without else [])
    plan = TrainPlan(pooled.lengths, layout, buckets, tokens_per_batch=tokens_per_batch, packed=packed, seed=seed)
    return OnPolicyBatches(
        plan,
        pooled,
        layout,
        rule,
        buckets=buckets,
        prompted=prompted,
        max_prompt=max_prompt or (buckets[-1].prompt if prompted else rule.beginning),
        packed=packed,
        seed=seed,
        **options,
    )


def random_text(prompt: Prompt) -> np.ndarray:
    """Return a text of 1 to `room` tokens that its number decides; it has no end token if it fills its room."""
    rng = np.random.default_rng(prompt.number)
    text = rng.integers(4, 50, rng.integers(1, prompt.room + 1)).astype(np.int32)
    text[-1] = text[-1] if len(text) == prompt.room else END
    return text


def take(batches: OnPolicyBatches, count: int, write: Write, first: int = 0) -> Iterator[tuple[Batch, list[Prompt]]]:
    """Yield (batch, the prompts of its pool) of so many updates from `first` on."""
    prompts: list[Prompt] = []
    for step in range(first, first + count):
        if batches.is_empty:
            prompts = batches.begin(step)
            batches.fill([write(prompt) for prompt in prompts])
        yield next(batches), prompts


class Row(NamedTuple):
    """What a batch holds of one example: token ids, which targets count, and whether the text is the student's own."""

    segment: int
    prompt: list[int]
    inputs: list[int]
    targets: list[int]
    counts: list[bool]
    own: bool


def examples_in(batch: Batch) -> list[Row]:
    """Return every example of a batch; an encoder-decoder's prompt is the encoder's, another one is in `targets`."""
    rows = []
    decoder, encoder = batch.inputs.decoder, batch.inputs.encoder
    own_BT = np.asarray(batch.own_BT)
    for b, segment_T in enumerate(np.asarray(decoder.segment_BT)):
        numbers = segment_T if encoder is None else np.concatenate([segment_T, encoder.segment_BT[b]])
        for segment in np.unique(numbers[numbers > 0]).tolist():
            here = segment_T == segment
            own = own_BT[b][here]
            assert own.all() or not own.any()
            prompt = [] if encoder is None else encoder.ids_BT[b][encoder.segment_BT[b] == segment].tolist()
            inputs, targets, counts = (x[b][here].tolist() for x in (decoder.ids_BT, batch.targets_BT, batch.mask_BT))
            rows.append(Row(segment, prompt, inputs, targets, counts, bool(own.all())))
    return rows
