"""The live pool of on-policy training: texts of the student's own, written between updates, with their figures."""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.artifacts import files
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches import pipeline
from kd_jax.batches.buckets import assign_buckets
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.batches.on_policy import OnPolicy, OnPolicyBatches, OwnTextRule, PooledExamples
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment, ResolvedRecipe
from kd_jax.losses.divergence import forward_kl, reverse_kl
from kd_jax.models.base import Model
from kd_jax.objective.terms import Term
from kd_jax.runtime import hosts, progress
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.progress import Bar
from kd_jax.signals.online import Online
from kd_jax.sources.base import UNLABELLED
from kd_jax.teaching.own_texts import OwnTextWriter, distinct_pairs
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.training.step import Sums, TokenCounts, loss_fn
from kd_jax.types import Array, Batch, Params

JUDGED_TEXTS = 16  # of each pool, compared with the teacher
TOP = 20  # most likely tokens of both models that are compared
FIRST_FILES, LAST_FILES = 2, 8  # of own texts that are kept


def top_overlap(teacher_logp_NV: Array, student_logp_NV: Array) -> Array:
    """Return the share of the teacher's TOP most likely tokens that are among the student's too, float32 [N]."""
    k = min(TOP, teacher_logp_NV.shape[-1])
    least_N1 = jax.lax.top_k(student_logp_NV, k)[0][:, -1:]
    ids_NK = jax.lax.top_k(teacher_logp_NV, k)[1]
    return (jnp.take_along_axis(student_logp_NV, ids_NK, axis=-1) >= least_N1).mean(-1, dtype=jnp.float32)


OWN_TERMS = {
    "own_kl": Term(forward_kl, signal=Online()),
    "own_reverse_kl": Term(reverse_kl, signal=Online()),
    "own_top_20": Term(top_overlap, signal=Online()),
}


def judge_step(
    params: tuple[Params, Params],
    batch: Batch,
    *,
    student: Model,
    teacher: Model,
    all_sum: Callable[[Any], Any] = lambda tree: tree,
) -> Sums:
    """Compare a student with its teacher over the targets of a batch.

    Args:
      params: (the student's, the teacher's).
      batch: rows [B, T] of this device.
      student: the student's network.
      teacher: the teacher's network.
      all_sum: sums a pytree over devices.

    Returns:
      Sums over all devices: "own_kl" = KL(teacher || student) and "own_reverse_kl" = KL(student || teacher), in nats,
      and "own_top_20", the share of the teacher's 20 most likely tokens that are among the student's.
    """
    counts = TokenCounts(target=jnp.int32(1), decoder=jnp.int32(1))  # the Sums do not depend on them
    trainable = (params[0], {})
    _, sums = loss_fn(trainable, batch, counts, None, params[1], model=student, terms=OWN_TERMS, teacher=teacher)
    return all_sum({name: sums[name] for name in OWN_TERMS})


def pooled_examples(
    experiment: ResolvedExperiment, workdir: Workdir, recipe: ResolvedRecipe, rule: OwnTextRule, split: pipeline.Split
) -> PooledExamples:
    """Return the examples of a student that writes texts of its own; those without a reference only if it wants them.

    Args:
      experiment: its padded lengths.
      workdir: the run's folder.
      recipe: of the student.
      rule: its targets.
      split: its examples with a target.
    """
    layout, shapes = recipe.model.layout(workdir.data.outputs()["start"]), experiment.shapes
    free_of: dict[str, np.ndarray | bool] = {}  # split -> which of its examples have no reference
    if rule.unlabelled and recipe.references:
        free_of["train"] = ~pipeline.references_mask_of(workdir.data, recipe.references)
    if rule.unlabelled and UNLABELLED in workdir.data.outputs()["splits"]:
        free_of[UNLABELLED] = True
    without: list[pipeline.Split] = []
    for name, is_free_N in free_of.items():
        lengths_N2 = pipeline.Split(workdir.data, name).lengths * np.array([1, 0]) + np.array([0, 1])
        fits_N = assign_buckets(lengths_N2, shapes, layout) < len(shapes)
        fits_N &= lengths_N2[:, 0] <= experiment.prompt_widths[-1]
        without.append(pipeline.Split(workdir.data, name, mask_N=fits_N & is_free_N))
    return PooledExamples(split, without)


def on_policy_batches(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    recipe: ResolvedRecipe,
    rule: OnPolicy,
    split: pipeline.Split,
    devices: Devices,
) -> OnPolicyBatches:
    """Return the training batches of a student that writes texts of its own.

    Args:
      experiment: seed and buckets.
      workdir: the run's folder.
      recipe: of the student.
      rule: its targets.
      split: its examples with a target.
      devices: the devices that share a batch.
    """
    tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
    layout, shapes = recipe.model.layout(tokenizer.start, tokenizer.forced_prefix), experiment.shapes
    prompted, training = experiment.task.prompted, recipe.training
    longest = experiment.prompt_widths[-1] if prompted else rule.beginning
    examples = pooled_examples(experiment, workdir, recipe, rule, split)
    plan = pipeline.TrainPlan(
        examples.lengths,
        layout,
        shapes,
        tokens_per_batch=training.tokens_per_batch,
        packed=training.packed,
        seed=experiment.seed,
    )
    return OnPolicyBatches(
        plan,
        examples,
        layout,
        rule,
        buckets=shapes,
        prompted=prompted,
        max_prompt=longest,
        packed=training.packed,
        seed=experiment.seed,
        divisor=devices.count * training.microbatches,
        shard=devices.share,
    )


class LivePool:
    """Fills a student's on-policy batches with texts, and watches them."""

    def __init__(
        self,
        title: str,
        batches: OnPolicyBatches,
        writer: OwnTextWriter,
        rule: OnPolicy,
        *,
        student: Model,
        teacher: Model,
        tokenizer: Tokenizer,
        devices: Devices,
        last: Bucket,
        folder: Path,
    ):
        """Prepare; nothing is compiled yet.

        Args:
          title: name of the student.
          batches: to fill.
          writer: of its texts.
          rule: the bounds of the stop rule.
          student: its network.
          teacher: the teacher's network.
          tokenizer: for the texts as a person reads them.
          devices: that share the steps.
          last: the last bucket, in which texts are judged.
          folder: for files of texts.
        """
        self.batches = batches
        self._title, self._writer, self._rule, self._tokenizer = title, writer, rule, tokenizer
        self._devices, self._last, self._folder = devices, last, folder
        self._judge = devices.compile_sums(functools.partial(judge_step, student=student, teacher=teacher))

    def refill(self, step: int, params: Params, teacher_params: Params, bar: Bar) -> dict[str, float] | None:
        """Write the texts of the next pool; return a row for the metrics log, None if the run was asked to stop.

        Args:
          step: number of the next update, from 1.
          params: the student's, replicated.
          teacher_params: the teacher's, replicated.
          bar: shows the progress.
        """
        start = time.perf_counter()
        prompts = self.batches.begin(step - 1)
        if not prompts:
            self.batches.fill([])
            return {}
        texts = self._writer.write(self._devices.unreplicate(params), prompts, bar)
        if texts is None:
            return None
        self.batches.fill(texts)
        seconds, tokens = time.perf_counter() - start, sum(map(len, texts))
        ended = [len(text) > 0 and int(text[-1]) in self._writer.ends for text in texts]
        row = {
            "step": step,
            "own_texts": len(texts),
            "own_tokens": tokens,
            "sampling_seconds": seconds,
            "own_tokens_per_second": tokens / seconds,
            "own_length": tokens / len(texts),
            "own_cut": 1 - sum(ended) / len(texts),
            "own_distinct_2": distinct_pairs(texts),
        }
        own = self.batches.owned()
        row |= self._judged(own, params, teacher_params, bar)
        row["judging_seconds"] = time.perf_counter() - start - seconds
        hosts.run_on_main(lambda: self._keep(step, own, ended))
        progress.log(
            f"{self._title}: step {step}: {len(texts)} own texts, {row['own_length']:.1f} tokens each, "
            f"{row['own_cut']:.0%} cut, distinct-2 {row['own_distinct_2']:.2f}, KL {row['own_kl']:.3f}, top-20 overlap "
            f"{row['own_top_20']:.0%}; {seconds:.1f} s, {row['own_tokens_per_second']:.0f} tokens/s"
        )
        return row

    def _judged(self, own: list[Segment], params: Params, teacher_params: Params, bar: Bar) -> dict[str, float]:
        """Return the means of `judge_step` over some texts, evenly spaced."""
        some = own[:: max(1, len(own) // JUDGED_TEXTS)][:JUDGED_TEXTS]
        batch = self.batches.batch([[segment] for segment in some], self._last, JUDGED_TEXTS)
        with bar.compiling_once("judgement of own texts"):
            sums = self._judge((params, teacher_params), self._devices.shard(batch))
            host = jax.device_get(self._devices.unreplicate(sums))
        return {name: float(total.mean()) for name, total in host.items()}

    def check_bounds(self, row: Mapping[str, float], checkpoint: int | None) -> None:
        """Check a row of `refill` against the bounds of the rule.

        Args:
          row: for the metrics log.
          checkpoint: step of the last one; None if there is none.

        Raises:
          KdError: if the texts are beyond a bound.
        """
        bounds = {
            "max_cut": (row["own_cut"] > self._rule.max_cut, "at most", "texts without an end", row["own_cut"]),
            "min_distinct": (
                row["own_distinct_2"] < self._rule.min_distinct,
                "at least",
                "different pairs of tokens",
                row["own_distinct_2"],
            ),
        }
        for field, (is_beyond, direction, what, value) in bounds.items():
            if is_beyond:
                raise KdError(
                    f"{self._title}: step {row['step']}: targets.{field}: expected {direction} "
                    f"{getattr(self._rule, field):.0%} {what} among its own, got {value:.0%}. Read them in "
                    f"{self._folder}; set a lower share or learning rate, or train on references first. Last good "
                    f"checkpoint: {'none' if checkpoint is None else f'step {checkpoint}'}."
                )

    def _keep(self, step: int, own: list[Segment], ended: list[bool]) -> None:
        """Write the pool's texts as JSON lines; keep the first files and the last ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line, ensure_ascii=False) for line in self._lines(own, ended)]
        with files.atomic_write(text_file(self._folder, step)) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        for path in text_files(self._folder):
            if int(path.stem) > step:  # of a run that was cut off, and resumed from before
                path.unlink()
        for path in text_files(self._folder)[FIRST_FILES:-LAST_FILES]:
            path.unlink()

    def _lines(self, own: list[Segment], ended: list[bool]) -> Iterator[dict[str, Any]]:
        decode = self._tokenizer.decode
        for segment, has_end in zip(own, ended, strict=True):
            encoded = segment.encoded
            counts = encoded.counts[len(encoded.prompt) :]
            given = [*encoded.prompt.tolist(), *encoded.completion[~counts].tolist()]
            text = encoded.completion[counts].tolist()
            shown = text[:-1] if has_end else text
            yield {"prompt": decode(given), "text": decode(shown), "ended": has_end, "ids": text}


def live_pool(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    name: str,
    batches: OnPolicyBatches,
    rule: OnPolicy,
    devices: Devices,
    teacher: Model,
) -> LivePool:
    """Return what fills a student's on-policy batches.

    Args:
      experiment: the experiment.
      workdir: the run's folder.
      name: of the student.
      batches: to fill.
      rule: the student's targets.
      devices: that share its steps.
      teacher: the teacher's network.
    """
    recipe = experiment.recipes[name]
    tokenizer = tokenizers.load(experiment.tokenizer, workdir.data)
    return LivePool(
        name,
        batches,
        OwnTextWriter(experiment, recipe, rule, tokenizer),
        rule,
        student=recipe.model.build(tokenizer.vocab_size),
        teacher=teacher,
        tokenizer=tokenizer,
        devices=devices,
        last=experiment.shapes[-1],
        folder=workdir.model(name).path / "own_texts",
    )


def text_file(folder: Path, step: int) -> Path:
    """Return the file of the own texts that are learned from update `step` on."""
    return folder / f"{step:08d}.jsonl"


def text_files(folder: Path) -> list[Path]:
    """Return the files of own texts, by step; other files are not ours."""
    return sorted(path for path in folder.glob("*.jsonl") if path.stem.isdecimal())
