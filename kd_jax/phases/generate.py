"""Answer standard input with a trained model, line by line, on standard output."""

import dataclasses
import difflib
import functools
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.batches.buckets import MAX_LENGTH
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PromptBatches
from kd_jax.decoding import text
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers import base as tokenizers


def run(experiment: ResolvedExperiment, workdir: Workdir, model: str = "", decoding: Decoding | None = None) -> None:
    """Write one line to standard output for every line of standard input, in order; an empty line stays empty.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: a run with trained models.
      model: "teacher" or a student's name; "" for the distilled student.
      decoding: how texts are written; None for the task's decoding without beam search.

    Raises:
      KdError: if there is no such model, or a line cannot be a prompt.
    """
    name = resolve_model_name(experiment, model)
    generator = TextGenerator(experiment, workdir, name, decoding or change_decoding(experiment.task.decoding))
    for numbered in read_batches(sys.stdin.buffer, f"{name}> "):
        lines = {number: line for number, line in numbered if line.strip()}
        prompts = {}
        for number, line in lines.items():
            try:
                prompts[number] = generator.encode(line)
            except KdError as error:
                raise KdError(f"standard input, line {number}: {error}") from error
        # One line, as a person types it, is not padded to a batch: fewer shapes are compiled.
        texts = generator.generate(prompts, batch_size=1 if len(numbered) == 1 else INFERENCE_BATCH_SIZE)
        sys.stdout.write("".join(texts.get(number, "") + "\n" for number, _ in numbered))
        sys.stdout.flush()


class TextGenerator:
    """A trained model that completes prompts, on one device.

    Attributes:
      experiment: the run's experiment.
      tokenizer: the model's tokenizer.
    """

    def __init__(self, experiment: ResolvedExperiment, workdir: Workdir, name: str, decoding: Decoding):
        """Load the model.

        Args:
          experiment: the experiment that the workdir was made with.
          workdir: a run with trained models.
          name: "teacher" or a student's name.
          decoding: how texts are written; beam search if its beam is above 1.

        Raises:
          KdError: if the model is not trained, or its tokenizer is another than it was trained with.
        """
        folder = workdir.model(name)
        self.experiment = experiment
        self.tokenizer = tokenizers.load(experiment.tokenizer, folder)
        if tokenizers.digest(self.tokenizer) != folder.inputs()["consumed.tokenizer"]:
            raise KdError(
                f"{folder.path}: expected the tokenizer that {name} was trained with, got another. Restore it."
            )
        architecture = experiment.recipes[name].model
        network = architecture.build(self.tokenizer.vocab_size)
        self._devices = make_devices("jit")
        self._params = self._devices.replicate(checkpoint.load_params(folder, network.init))
        self._layout = architecture.layout(self.tokenizer.start, self.tokenizer.forced_prefix)
        self._max_length = min(architecture.context or MAX_LENGTH, MAX_LENGTH)
        self._write = self._devices.compile(
            functools.partial(
                text.write,
                model=network,
                architecture=architecture,
                way=decoding.ways[-1],
                decoding=decoding,
                eos=self.tokenizer.eos,
                suppress_tokens=self.tokenizer.suppress_tokens,
            )
        )

    def encode(self, prompt: str) -> np.ndarray:
        """Return a prompt's token ids, int32 [P].

        Raises:
          KdError: if it is too long, or the task has no such prompts.
        """
        ids = self.experiment.task.encode_prompt(prompt, self.tokenizer)
        if len(ids) >= self._max_length:
            raise KdError(f"expected fewer than {self._max_length} tokens, got {len(ids)}. Shorten the prompt.")
        return ids

    def generate(self, prompts: Mapping[int, np.ndarray], batch_size: int = INFERENCE_BATCH_SIZE) -> dict[int, str]:
        """Complete prompts.

        Args:
          prompts: number -> token ids, int32 [P]; the number and the seed decide a sampled text.
          batch_size: prompts completed together.

        Returns:
          Number -> text.
        """
        batches = PromptBatches(
            list(prompts.values()), self._layout, self.experiment.prompt_widths, batch_size, 1, list(prompts)
        )
        texts: dict[int, str] = {}
        for (_, numbers), inputs in zip(batches.plan, batches, strict=True):
            ids_BT = self._devices.to_host(self._write(self._params, self._devices.shard(inputs)))
            for number, ids_T in zip(numbers, ids_BT, strict=False):  # the last rows of a batch may be padding
                texts[int(number)] = text.to_text(ids_T, self.tokenizer)
        return texts


def change_decoding(
    decoding: Decoding,
    beam: int = 1,
    length: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> Decoding:
    """Return a task's decoding with other settings; None keeps the task's.

    Args:
      decoding: the task's.
      beam: width of beam search; 1 for none, whatever the task's is.
      length: maximum length in tokens, in the place of the task's, which depends on the prompt's length.
      temperature: of sampling; 0 for greedy decoding.
      top_k: sample among so many tokens; 0 for all.
      top_p: sample among the most probable tokens of this probability.
      min_p: sample among tokens of at least this share of the highest probability.
      repetition_penalty: divides the logits of tokens that were written before.
      seed: of the sampling.

    Raises:
      KdError: if an option is out of its range, or --beam stands beside an option of sampling; names the option.
    """
    sampling_options = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    changes = {field: value for field, value in sampling_options.items() if value is not None}
    decoding = dataclasses.replace(decoding, beam=beam, sampling=dataclasses.replace(decoding.sampling, **changes))
    if length is not None:
        decoding = dataclasses.replace(decoding, length=length, length_ratio=0.0)
    try:
        decoding.check()
    except KdError as error:
        raise KdError(re.sub(r"task\.decoding\.(sampling\.)?", "--", str(error)).replace("_", "-")) from error
    if beam > 1 and changes:
        option = next(iter(changes)).replace("_", "-")
        raise KdError(f"--beam: expected no option of sampling beside it, got --{option}. Leave one of them out.")
    return decoding


def resolve_model_name(experiment: ResolvedExperiment, model: str) -> str:
    """Return the name of the model that --model means.

    Args:
      experiment: the run's experiment.
      model: a name, or "" for the comparison's distilled student, else the last student, else the teacher.

    Raises:
      KdError: if there is no such model; names the nearest.
    """
    if model and model not in experiment.recipes:
        (nearest,) = difflib.get_close_matches(model, experiment.recipes, 1, 0.0) or [TEACHER]
        raise KdError(f"--model: expected one of {', '.join(experiment.recipes)}, got {model}. Did you mean {nearest}?")
    if model or not experiment.comparison:
        return model or list(experiment.recipes)[-1]
    return experiment.comparison.distilled


def read_batches(stream: BinaryIO, prompt: str) -> Iterator[Sequence[tuple[int, str]]]:
    """Yield (number, line) of the lines of a stream in batches; at a terminal, prompt for one line at a time.

    Raises:
      KdError: if a line is not UTF-8.
    """
    interactive = stream.isatty()
    numbered = enumerate(stream, 1)
    while True:
        if interactive:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        raw = list(itertools.islice(numbered, 1 if interactive else INFERENCE_BATCH_SIZE))
        if not raw:
            break
        yield [(number, _decode(number, line)) for number, line in raw]
    if interactive:
        sys.stderr.write("\n")


def _decode(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KdError(
            f"standard input, line {number}: expected UTF-8, got other bytes. Convert it with iconv."
        ) from error
