"""On-policy distillation: a student learns on texts that it writes itself, in the batches of the ordinary step.

Every so many batches the student writes texts for the prompts of the batches to come: the pool. Which examples get a
text of the student's own is a pure function of (seed, batch, place in the batch), and each draw of a token one of
(seed, number of the text, position). A pool that is not used up is saved with the checkpoint, so a run resumes to the
same bits.
"""

import base64
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from kd_jax import schedules
from kd_jax.batches.buckets import assign_buckets, pack_rows, round_up
from kd_jax.batches.layouts import Bucket, Layout, Segment, host_array
from kd_jax.batches.pipeline import Split, TrainPlan
from kd_jax.batches.targets import PseudoTargets
from kd_jax.config import MAX_COUNT, MAX_LENGTH, MAX_ROWS, MAX_STEPS, check_count, is_number
from kd_jax.errors import KdError
from kd_jax.schedules import ScalarOrSchedule
from kd_jax.tasks.base import Encoded, Sampling, append_completion
from kd_jax.types import Batch

OWN_TEXTS_SEED = 29  # beside the experiment's seed: apart from the order of examples
MAX_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class OwnTextRule:
    """Which examples get a text of the student's own, and how it is written; see `OnPolicy` and `Rounds`."""

    share: ScalarOrSchedule = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    others: PseudoTargets | None = None
    unlabelled: bool = False
    length: int = 0
    beginning: int = 32

    def check(self) -> None:
        """Check the ranges of all fields."""
        if callable(self.share):
            schedules.check(self.share, "targets.share", 0.0, 1.0)
        elif not is_share(self.share):
            raise KdError(
                f"targets.share: expected a number in [0, 1] or a Schedule, got {self.share!r}. Set targets.share."
            )
        self.sampling(0).check("targets")
        check_count("targets.length", self.length, 0, MAX_LENGTH, "Use 0 for the task's decoding.")
        check_count("targets.beginning", self.beginning, 0, MAX_LENGTH)
        if self.others:
            self.others.check()
            if self.unlabelled:
                raise KdError(
                    "targets.unlabelled: expected False beside targets.others, which has the teacher's texts for the "
                    "other prompts, got True. Set others=PseudoTargets(of='both'), or remove one of them."
                )

    def check_room(self, buckets: Sequence[int], prompted: bool) -> None:
        """Check that own texts fit the padded lengths of the completions.

        Args:
          buckets: padded lengths, ascending.
          prompted: whether the task has prompts; else a text continues the beginning of a document.
        """
        if self.length and not buckets[0] <= self.length <= buckets[-1]:
            raise KdError(
                f"targets.length: expected from {buckets[0]} to {buckets[-1]}, the lengths of the shortest and of the "
                f"longest bucket, or 0, got {self.length}. Set targets.length."
            )
        if not prompted and not 1 <= self.beginning < buckets[-1]:
            raise KdError(
                f"targets.beginning: expected from 1 to {buckets[-1] - 1} tokens of each document to continue, since "
                f"the task has no prompts, got {self.beginning}. Set targets.beginning."
            )

    def sampling(self, seed: int) -> Sampling:
        """Return the settings of the draws for a seed."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=seed)

    def share_at(self, step: int) -> float:
        """Return the share at an update."""
        return float(schedules.value_at(self.share, step))


@dataclasses.dataclass(frozen=True)
class OnPolicy(OwnTextRule):
    """A student that learns on texts of its own, judged token by token by the teacher in the step.

    The student writes them every `pool` batches, without dropout. A term with a signal compares the models on all
    texts; a term without one, such as cross-entropy, reads the other texts alone, since an own text is no reference.

    Attributes:
      share: probability that an example's target is the student's own text: a number in [0, 1], a Schedule, or a
        function of the step. The other examples keep their reference, or the teacher's text.
      temperature: of the draws; 1 for the student's own distribution, 0 for its most likely tokens. It is not the
        temperature of a loss.
      top_p: draw from the smallest set of tokens whose probability reaches it; 1 for all.
      others: the teacher's texts for the other examples, in place of references; None for the references.
      unlabelled: whether examples without a reference are prompts too (see Recipe.references); their target is always
        an own text.
      length: most tokens of an own text, its end token included; 0 for the task's decoding, cut to the last bucket.
      beginning: for a task without prompts, tokens of each document that are given.
      pool: batches for which texts are written together. A larger pool is faster, and its last texts are of an older
        student. Texts that are longer than their batch's bucket move to a longer one, so the number of updates may
        differ a little.
      max_cut: largest share of a pool's texts without an end; training stops beyond it.
      min_distinct: least distinct-2 of a pool's texts, the share of different pairs of tokens; training stops below it.

    References:
      Agarwal et al. 2023, arXiv 2306.13649 (GKD), algorithm 1; `share` is its lambda.

    Examples:
      >>> OnPolicy(share=0.5).check()
      >>> OnPolicy(share=1.5).check()
      Traceback (most recent call last):
      kd_jax.errors.KdError: targets.share: expected a number in [0, 1] or a Schedule, got 1.5. Set targets.share.
    """

    pool: int = 50
    max_cut: float = 1.0
    min_distinct: float = 0.0

    def check(self) -> None:
        """Check the ranges of all fields."""
        super().check()
        check_count("targets.pool", self.pool, 1, MAX_STEPS, "A pool has texts for at least one batch.")
        for field in ("max_cut", "min_distinct"):
            if not is_share(getattr(self, field)):
                raise KdError(
                    f"targets.{field}: expected a number in [0, 1], got {getattr(self, field)!r}. Set targets.{field}."
                )


@dataclasses.dataclass(frozen=True)
class Rounds(OwnTextRule):
    """A student that learns on texts of its own in rounds, from the teacher's cached signals for them.

    In each round the student writes texts, the teacher's signals for them are written into a cache, and the student
    trains on them. So the teacher is in memory only while it writes, it may be of another family, and it may run
    elsewhere (`kd-jax sample`). A term with a signal reads all texts; a term without one, such as cross-entropy, reads
    the other texts alone.

    Attributes:
      share: probability that an example's target is the student's own text: a number in [0, 1], a Schedule, or a
        function of the step, taken at a round's first update.
      temperature: of the draws, as in OnPolicy.
      top_p: as in OnPolicy.
      others: as in OnPolicy.
      unlabelled: as in OnPolicy.
      length: as in OnPolicy.
      beginning: as in OnPolicy.
      count: rounds; the updates are divided evenly among them.
      examples: examples of a round, drawn anew for each; 0 for all.

    References:
      Ko et al. 2024, arXiv 2402.03898 (DistiLLM), section 3.2, for learning from stored texts of the student.

    Examples:
      >>> Rounds(count=4).first_steps(steps=10)  # of each round, and the end
      [0, 2, 5, 7, 10]
    """

    count: int = 4
    examples: int = 0

    def check(self) -> None:
        """Check the ranges of all fields."""
        super().check()
        check_count("targets.count", self.count, 1, MAX_ROWS)
        check_count("targets.examples", self.examples, 0, MAX_COUNT, "Use 0 for all.")

    def first_steps(self, steps: int) -> list[int]:
        """Return the updates before each round, and at the end."""
        return [steps * n // self.count for n in range(self.count + 1)]


def is_share(value: Any) -> bool:
    """Return whether a value is a number in [0, 1]."""
    return is_number(value) and 0 <= value <= 1


class PooledExamples:
    """The examples of a student that writes texts of its own: those with a target, then those without.

    Attributes:
      name: of the first split.
      lengths: int32 [examples, 2], tokens of each prompt and completion.
      targets: number of examples with a target; the others always get an own text.
    """

    def __init__(self, with_targets: Split, without: Sequence[Split] = ()):
        """Join splits; those `without` targets may have completions, which are not read."""
        self._splits = (with_targets, *without)
        self.name, self.targets = with_targets.name, len(with_targets)
        lengths = [with_targets.lengths, *(split.lengths * np.array([1, 0], np.int32) for split in without)]
        self.lengths = np.concatenate(lengths)
        self._ends = np.cumsum([len(split) for split in self._splits])

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.lengths)

    def read(self, i: int) -> Segment:
        """Return example i, whose number it is here too."""
        part = int(np.searchsorted(self._ends, i, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return self._splits[part].read(i - start)._replace(index=i)


class Slot(NamedTuple):
    """A place in a row: the number of an example, and of its own text in the pool, -1 for its target."""

    example: int
    text: int = -1


PlannedRows = tuple[Bucket, list[list[Slot]]]


def draw_own(seed: int, batch: int, count: int, share: float) -> np.ndarray:
    """Return which of a batch's examples get an own text, bool [count].

    Args:
      seed: of the experiment.
      batch: number of the batch.
      count: examples in it.
      share: probability of an own text.

    Examples:
      >>> bool(draw_own(0, 3, 8, share=0.0).any()), bool(draw_own(0, 3, 8, share=1.0).all())
      (False, True)
      >>> bool((draw_own(0, 3, 8, 0.5) <= draw_own(0, 3, 8, 0.8)).all())  # a larger share adds examples
      True
    """
    return np.random.default_rng((OWN_TEXTS_SEED, seed, batch)).random(count) < share


def place(
    planned: Sequence[PlannedRows],
    lengths_of: Callable[[Slot], np.ndarray],
    layout: Layout,
    buckets: Sequence[Bucket],
    batch_rows: Callable[[Bucket], int],
    packing_seed: int | None,
) -> list[PlannedRows]:
    """Return a pool's batches: own texts that fit their planned row stay there, the others move to a longer bucket.

    The rows of a bucket that has lost or got texts are spread evenly over as few batches as hold them; these take the
    bucket's places in the plan, and further ones follow at the end. Without a text that is too long the plan remains.

    Args:
      planned: the batches before own texts were written.
      lengths_of: slot -> (tokens of its prompt, tokens of its completion).
      layout: the model family's.
      buckets: padded lengths, ascending; each text fits the last one.
      batch_rows: bucket -> rows of a full batch.
      packing_seed: decides which of the texts that move share a row; None for one text a row.

    Examples:
      >>> from kd_jax.batches.layouts import EncoderDecoderLayout
      >>> short, long = Bucket(4, 4), Bucket(8, 8)
      >>> planned = [(short, [[Slot(0, text=0)], [Slot(1)]]), (long, [[Slot(2)]])]
      >>> lengths = {0: (3, 6), 1: (3, 2), 2: (7, 7)}  # the own text of example 0 has 6 tokens
      >>> place(planned, lambda slot: np.array(lengths[slot.example]), EncoderDecoderLayout(start=1), (short, long),
      ...       batch_rows=lambda bucket: 8 // bucket.completion, packing_seed=None)
      [(Bucket(prompt=4, completion=4), [[Slot(example=1, text=-1)]]), \
(Bucket(prompt=8, completion=8), [[Slot(example=2, text=-1)]]), \
(Bucket(prompt=8, completion=8), [[Slot(example=0, text=0)]])]
    """
    rows_of: dict[Bucket, list[list[Slot]]] = {bucket: [] for bucket in buckets}
    changed: set[Bucket] = set()
    moved: list[Slot] = []
    for bucket, rows in planned:
        room_X = layout.sizes(np.asarray(bucket))
        for row in rows:
            stays, used_X = [True] * len(row), np.zeros_like(room_X)
            # Targets first, which fit as planned: one that moved could share a row with another copy of its example.
            for n in sorted(range(len(row)), key=lambda n: row[n].text >= 0):
                size_X = layout.sizes(lengths_of(row[n]))
                stays[n] = bool((used_X + size_X <= room_X).all())
                used_X = used_X + stays[n] * size_X
            moved += [slot for slot, stay in zip(row, stays, strict=True) if not stay]
            if not all(stays):
                changed.add(bucket)
            if any(stays):
                rows_of[bucket].append([slot for slot, stay in zip(row, stays, strict=True) if stay])
    if not moved:
        return list(planned)
    lengths_N2 = np.stack([lengths_of(slot) for slot in moved])
    if packing_seed is None:
        for slot, b in zip(moved, assign_buckets(lengths_N2, buckets, layout), strict=True):
            rows_of[buckets[b]].append([slot])
            changed.add(buckets[b])
    else:
        packed = pack_rows(layout.sizes(lengths_N2), layout.sizes(np.asarray(buckets[-1])), packing_seed)
        rows_of[buckets[-1]] += [[moved[n] for n in row] for row in packed]
        changed.add(buckets[-1])
    batches = {bucket: _spread(rows_of[bucket], batch_rows(bucket)) for bucket in changed}
    placed: list[PlannedRows] = []
    for bucket, rows in planned:
        if bucket not in changed:
            placed.append((bucket, rows))
        elif batches[bucket]:
            placed.append((bucket, batches[bucket].pop(0)))
    return placed + [(bucket, rows) for bucket in buckets for rows in batches.get(bucket, [])]


def _spread(rows: list[list[Slot]], batch_rows: int) -> list[list[list[Slot]]]:
    """Return rows in as few batches as hold them, of equal size but for one row."""
    count = math.ceil(len(rows) / batch_rows)
    ends = [len(rows) * n // count for n in range(count + 1)] if count else []
    return [rows[start:end] for start, end in zip(ends, ends[1:], strict=False)]


class Prompt(NamedTuple):
    """What the student continues.

    Attributes:
      ids: int32 [P], the prompt, or the beginning of a document.
      number: of the text among all that the student writes; it decides the draws.
      room: most tokens of the text.
    """

    ids: np.ndarray
    number: int
    room: int


class OwnTextForm:
    """How an example becomes a prompt for a text of the student's own, and such a text an example.

    Attributes:
      max_prompt: longest prompt that is continued.
    """

    def __init__(
        self,
        layout: Layout,
        buckets: Sequence[Bucket],
        *,
        prompted: bool,
        max_prompt: int,
        length: int = 0,
        beginning: int = 0,
    ):
        """Set the lengths.

        Args:
          layout: the model family's.
          buckets: padded lengths, ascending; a text fits the last one.
          prompted: whether the task has prompts; else a text continues the beginning of a document.
          max_prompt: longest prompt that is continued.
          length: most tokens of a text; 0 for the room in the last bucket.
          beginning: tokens of a document that are given.
        """
        self._layout, self._last, self._prompted = layout, np.asarray(buckets[-1]), prompted
        self.max_prompt, self._length, self._beginning = max_prompt, length, beginning
        self._room = functools.cache(self._room_beside)

    def prompt(self, encoded: Encoded, number: int) -> Prompt | None:
        """Return the prompt of an example for the text of this number; None if it is too long."""
        ids = encoded.prompt if self._prompted else self.given(encoded)
        room = self._room(len(ids)) if self._prompted else self._room(0) - len(ids)
        room = min(room - len(self._layout.forced_prefix), self._length or room)
        return Prompt(ids, number, room) if room >= 1 and len(ids) <= self.max_prompt else None

    def given(self, encoded: Encoded) -> np.ndarray:
        """Return the tokens of a document, or of a window of it, that are given; at least one is left to write."""
        ids = np.concatenate([encoded.prompt, encoded.completion])
        return ids[: max(1, min(self._beginning, len(ids) - 1))]

    def example(self, encoded: Encoded, text: np.ndarray) -> Encoded:
        """Return an example with an own text as its target; of its tokens those of the text count alone."""
        if self._prompted:
            not_counted = np.zeros(len(encoded.prompt), bool)
            return append_completion(encoded.prompt, not_counted, self._layout.forced_prefix, text)
        given = self.given(encoded)
        counts = np.arange(len(given) + len(text)) >= len(given)
        return Encoded(encoded.prompt[:0], np.concatenate([given, text]), counts)

    def _room_beside(self, prompt: int) -> int:
        """Return the most tokens of a completion beside a prompt of so many tokens, in the last bucket."""
        candidates = np.arange(self._last.sum() + 1)
        sizes_CX = self._layout.sizes(np.stack([np.full_like(candidates, prompt), candidates], axis=-1))
        return int(np.flatnonzero((sizes_CX <= self._layout.sizes(self._last)).all(-1)).max(initial=0))


class OnPolicyBatches:
    """Training batches with texts of the student's own; an iterator, whose state is saved with checkpoints.

    When it `is_empty`, `begin` a pool, write a text for each of its prompts, and `fill` it; then take its batches.
    """

    def __init__(
        self,
        plan: TrainPlan,
        examples: PooledExamples,
        layout: Layout,
        rule: OnPolicy,
        *,
        buckets: Sequence[Bucket],
        prompted: bool,
        max_prompt: int,
        packed: bool,
        seed: int,
        divisor: int = 1,
        shard: tuple[int, int] = (0, 1),
    ):
        """Plan from the first batch on.

        Args:
          plan: of the batches of `examples`.
          examples: with the targets of those that keep theirs.
          layout: the model family's.
          rule: which examples get an own text.
          buckets: padded lengths, ascending.
          prompted: whether the task has prompts.
          max_prompt: longest prompt that is continued; an example with a longer one keeps its target.
          packed: whether several examples share a row.
          seed: of the experiment.
          divisor: the number of rows of a batch is a multiple of it.
          shard: (index of this host, number of hosts); a host reads its slice of each batch.
        """
        self._plan, self._examples, self._layout, self._rule = plan, examples, layout, rule
        self._buckets, self._packed = buckets, packed
        self._form = OwnTextForm(
            layout,
            buckets,
            prompted=prompted,
            max_prompt=max_prompt,
            length=rule.length,
            beginning=rule.beginning,
        )
        self._seed, self._divisor, self._shard = seed, divisor, shard
        # `first`: number of the pool's first planned batch. `step`: number of its first update, from 0. `written`:
        # texts of earlier pools. `done`: batches of the pool that were taken.
        self._state: dict[str, Any] = {"first": 0, "step": 0, "written": 0, "done": 0, "texts": ""}
        self._batches: list[PlannedRows] = []
        self._texts: list[np.ndarray] = []
        self._iterator: Any = iter(())

    def __iter__(self) -> "OnPolicyBatches":
        """Return the iterator itself."""
        return self

    @property
    def is_empty(self) -> bool:
        """Whether a pool must be begun before the next batch is taken."""
        return self._state["done"] == len(self._batches)

    def begin(self, step: int) -> list[Prompt]:
        """Begin a pool; return its prompts.

        Args:
          step: number of the next update, from 0.
        """
        if self._batches:
            self._state = self._next_state()
        self._state |= {"step": step}
        self._planned, prompts = self._choose()
        return prompts

    def fill(self, texts: Sequence[np.ndarray]) -> None:
        """Take the text of each prompt, int32 [T], its end token included if it has one; cut to its room."""
        self._texts = [np.asarray(text, np.int32) for text in texts]
        self._state |= {"texts": pack_texts(self._texts), "done": 0}
        self._batches = place(
            self._planned,
            self._lengths_of,
            self._layout,
            self._buckets,
            self._plan.batch_rows,
            self._seed + self._state["first"] if self._packed else None,
        )
        self._open()

    def __next__(self) -> Batch:
        """Return this host's slice of the next batch."""
        batch = next(self._iterator)
        self._state["done"] += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position and the texts that are not used up, as JSON-able data."""
        return dict(self._next_state() if self._batches and self.is_empty else self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a position."""
        self._state, self._batches, done = dict(state), [], state["done"]
        if state["texts"]:
            self._planned, _ = self._choose()
            self.fill(unpack_texts(state["texts"]))
            self._state["done"] = done
            self._open()

    def owned(self) -> list[Segment]:
        """Return the pool's own texts as examples."""
        slots = [slot for _, rows in self._batches for row in rows for slot in row if slot.text >= 0]
        return [self._read(slot) for slot in sorted(slots, key=lambda slot: slot.text)]

    def batch(self, rows: Sequence[Sequence[Segment]], bucket: Bucket, count: int) -> Batch:
        """Return this host's slice of a batch of `count` rows in which own texts are marked."""
        index, hosts = self._shard
        count = round_up(count, self._divisor) // hosts
        batch = self._layout.batch(rows[index * count :][:count], count, bucket, {})
        own_BT = np.asarray(batch.inputs.decoder.segment_BT) > len(self._examples)
        return batch._replace(own_BT=host_array(own_BT))

    def _open(self) -> None:
        """Assemble the pool's remaining batches, in a thread."""
        source = grain.MapDataset.source(_PoolBatches(self, self._batches))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
        self._iterator = iter(source[self._state["done"] :].to_iter_dataset(options))

    def _next_state(self) -> dict[str, Any]:
        """Return the state before the next pool."""
        return {
            "first": self._state["first"] + self._rule.pool,
            "step": self._state["step"] + len(self._batches),
            "written": (self._state["written"] + len(self._texts)) % (MAX_INT32 - len(self._examples)),
            "done": 0,
            "texts": "",
        }

    def _choose(self) -> tuple[list[PlannedRows], list[Prompt]]:
        """Return (the pool's planned batches, the prompts of the examples that get an own text)."""
        planned: list[PlannedRows] = []
        prompts: list[Prompt] = []
        for n in range(self._rule.pool):
            number = self._state["first"] + n
            bucket, rows = self._plan.plan(number)
            own = iter(draw_own(self._seed, number, sum(map(len, rows)), self._rule.share_at(self._state["step"] + n)))
            slots = [[self._slot(int(i), bool(next(own)), prompts) for i in row] for row in rows]
            planned.append((bucket, slots))
        return planned, prompts

    def _slot(self, i: int, is_own: bool, prompts: list[Prompt]) -> Slot:
        """Return the slot of example i; the prompt of an own text is appended to `prompts`."""
        if not (is_own or i >= self._examples.targets):
            return Slot(i)
        number = (self._state["written"] + len(prompts)) % (MAX_INT32 - len(self._examples))
        prompt = self._form.prompt(self._examples.read(i).encoded, number)
        if prompt is None:
            return Slot(i)
        prompts.append(prompt)
        return Slot(i, len(prompts) - 1)

    def _lengths_of(self, slot: Slot) -> np.ndarray:
        if slot.text < 0:
            return self._examples.lengths[slot.example]
        own = self._form.example(self._examples.read(slot.example).encoded, self._texts[slot.text])
        return np.array([len(own.prompt), len(own.completion)])

    def _read(self, slot: Slot) -> Segment:
        """Return the example of a slot; its own text has a number after all examples, so that each is told apart."""
        segment = self._examples.read(slot.example)
        if slot.text < 0:
            return segment
        number = (self._state["written"] + slot.text) % (MAX_INT32 - len(self._examples))
        own = self._form.example(segment.encoded, self._texts[slot.text])
        return Segment(len(self._examples) + number, own, 1.0, {})

    def _assemble(self, planned: PlannedRows) -> Batch:
        bucket, rows = planned
        return self.batch(
            [[self._read(slot) for slot in row] for row in rows], bucket, max(len(rows), self._plan.batch_rows(bucket))
        )


class _PoolBatches:
    """The batches of a pool, by number."""

    def __init__(self, owner: OnPolicyBatches, batches: Sequence[PlannedRows]):
        self._owner, self._batches = owner, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._owner._assemble(self._batches[index])


def pack_texts(texts: Sequence[np.ndarray]) -> str:
    """Return texts as a string for JSON.

    Examples:
      >>> [text.tolist() for text in unpack_texts(pack_texts([np.array([7, 8, 2]), np.array([2])]))]
      [[7, 8, 2], [2]]
    """
    arrays = [np.array([len(texts), *map(len, texts)], "<i4"), *(np.asarray(text, "<i4") for text in texts)]
    return base64.b64encode(zlib.compress(np.concatenate(arrays).tobytes())).decode()


def unpack_texts(packed: str) -> list[np.ndarray]:
    """Return the texts that `pack_texts` made a string of."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").astype(np.int32)
    count = int(values[0])
    return np.split(values[1 + count :], np.cumsum(values[1 : 1 + count])[:-1]) if count else []
