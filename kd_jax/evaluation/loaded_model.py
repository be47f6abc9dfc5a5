"""A trained model with its tokenizer: texts and likelihoods for prompts from memory."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.artifacts import checkpoint
from kd_jax.artifacts.workdir import Workdir
from kd_jax.batches.buckets import MAX_LENGTH, chunks, padded_lengths, rows_per_batch
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.batches.pipeline import INFERENCE_BATCH_SIZE, PromptBatches
from kd_jax.decoding import text as decoding_text
from kd_jax.errors import KdError
from kd_jax.evaluation.closeness import negative_log_likelihood
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.provenance import check_model
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Compiled
from kd_jax.students.pretrained import FromHuggingFace
from kd_jax.tasks.base import Decoding, Encoded, Sampling, append_completion, encode_text
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.tokenizers.generation_config import GenerationSettings
from kd_jax.tokenizers.huggingface import FastTokenizer, HuggingFaceTokenizer
from kd_jax.types import Params

FOLDER_DECODING = Decoding(beam=1, length_ratio=0.0, length=128)
FOLDER_LENGTHS = (16, 32, 64, 128, 256, 512)  # padded lengths, each of which is compiled once


class LogLikelihoods(NamedTuple):
    """Log-likelihoods of texts.

    Attributes:
      sums: float64 [N], sum of the log-probabilities of each text's tokens, in nats.
      tokens: int64 [N], number of those tokens, with the end token.

    Examples:
      >>> result = LogLikelihoods(sums=np.log([0.5, 0.125]), tokens=np.array([1, 3]))
      >>> float(np.exp(-result.sums.sum() / result.tokens.sum()).round(6))  # perplexity
      2.0
    """

    sums: np.ndarray
    tokens: np.ndarray


def folder_decoding(generation: GenerationSettings) -> Decoding:
    """Return the decoding of a folder's model: greedy, by the settings of its generation_config.json.

    Examples:
      >>> folder_decoding(GenerationSettings(no_repeat_ngram=3, top_k=20)).no_repeat_ngram
      3
    """
    return dataclasses.replace(
        FOLDER_DECODING,
        min_length=generation.min_length,
        no_repeat_ngram=generation.no_repeat_ngram,
        no_source_ngram=generation.no_source_ngram,
        sampling=Sampling(
            top_k=generation.top_k,
            top_p=generation.top_p,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
        ),
    )


class LoadedModel:
    """A trained model with its tokenizer, on one device. `kd_jax.load_model` returns it.

    Attributes:
      architecture: the network's hyper-parameters.
      model: the network as pure functions.
      params: its parameters.
      tokenizer: its tokenizer.
      decoding: default settings of generation.

    Examples:
      >>> import kd_jax
      >>> model = kd_jax.load_model("runs/quickstart", "student_kd")  # doctest: +SKIP
      >>> model.generate(["Open the file"], beam=4)  # doctest: +SKIP
      ['Ouvrir le fichier']
    """

    def __init__(
        self,
        architecture: Architecture,
        params: Params,
        tokenizer: Tokenizer,
        encode_prompt: Callable[[str], np.ndarray],
        decoding: Decoding,
        buckets: Sequence[Bucket],
        prompt_lengths: Sequence[int],
    ):
        """Build the network; lengths and buckets are ascending."""
        self.architecture, self.tokenizer, self.decoding = architecture, tokenizer, decoding
        self.model = architecture.build(tokenizer.vocab_size)
        self._devices = make_devices("jit")
        self.params: Params = self._devices.replicate(params)
        self._encode_prompt, self._buckets, self._prompt_lengths = encode_prompt, buckets, prompt_lengths
        self._layout = architecture.layout(tokenizer.start, tokenizer.forced_prefix)
        self._max_length = min(architecture.context or MAX_LENGTH, MAX_LENGTH)
        self._likelihood_program = self._devices.compile(functools.partial(negative_log_likelihood, model=self.model))
        self._generate_program = functools.cache(self._compile_generate)

    @classmethod
    def from_run(cls, experiment: ResolvedExperiment, workdir: Workdir, name: str) -> "LoadedModel":
        """Load a trained model of a run by its name, "teacher" or a student's.

        Raises:
          KdError: if the model is not finished, or is not of this experiment and of the run's data and teacher.
        """
        check_model(experiment, workdir, name)
        folder = workdir.model(name)
        tokenizer = tokenizers.load(experiment.tokenizer, folder)
        if tokenizers.digest(tokenizer) != folder.inputs()["consumed.tokenizer"]:
            raise KdError(f"{folder.path}: expected the tokenizer of {name}'s training, got another. Restore it.")
        architecture = experiment.recipes[name].model
        return cls(
            architecture,
            params=checkpoint.load_params(folder, architecture.build(tokenizer.vocab_size).init),
            tokenizer=tokenizer,
            encode_prompt=lambda text: experiment.task.encode_prompt(text, tokenizer),
            decoding=experiment.task.decoding.replace(),
            buckets=experiment.shapes,
            prompt_lengths=experiment.prompt_widths,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "LoadedModel":
        """Load a model from a local folder in Hugging Face's layout.

        The folder has config.json, safetensors and the tokenizer's files. Prompts are encoded, and texts are decoded,
        as transformers does it: generation_config.json counts but for lengths, beams, and whether texts are drawn.
        """
        init = FromHuggingFace(str(folder))
        architecture = init.architecture()
        settings = HuggingFaceTokenizer().with_folder(str(folder))
        settings.check()
        with tempfile.TemporaryDirectory() as prepared:
            settings.prepare((), Path(prepared))
            tokenizer = settings.load(Path(prepared))
        assert tokenizer.rows_V is not None  # a pretrained tokenizer has rows
        has_encoder = architecture.family == "encoder_decoder"
        generation = init.generation_settings(has_encoder, len(tokenizer.forced_prefix))
        encode: Callable[[str], list[int]] = tokenizer.encode_prompt
        if isinstance(tokenizer, FastTokenizer) and not has_encoder:
            encode = tokenizer.encode_input
        return cls(
            architecture,
            params=init.load_params(tokenizer.rows_V),
            tokenizer=tokenizer,
            encode_prompt=lambda text: np.asarray(encode(text), np.int32),
            decoding=folder_decoding(generation),
            buckets=[Bucket(length, length) for length in FOLDER_LENGTHS],
            prompt_lengths=FOLDER_LENGTHS,
        )

    def generate(
        self,
        texts: Sequence[str],
        beam: int = 1,
        max_length: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        batch_size: int = INFERENCE_BATCH_SIZE,
    ) -> list[str]:
        """Generate a text for each prompt, as the command `kd-jax generate` does for each line.

        None keeps the setting of `decoding`.

        Args:
          texts: prompts.
          beam: width of beam search; 1 for none.
          max_length: maximum number of generated tokens.
          temperature: of sampling; 0 for the most probable token.
          top_k: sample from the k most probable tokens; 0 for all.
          top_p: sample from the most probable tokens that reach this probability.
          min_p: exclude tokens below this share of the highest probability.
          repetition_penalty: divides the logits of tokens that occurred before.
          seed: of sampling, together with the position of the text.
          batch_size: prompts generated together.

        Returns:
          The generated texts, in order.

        Raises:
          KdError: if a prompt is too long, or a setting is out of its range.
        """
        decoding = self.decoding.replace(
            beam=beam,
            length=max_length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        prompts = {number: self.encode(text) for number, text in enumerate(texts, 1)}
        generated = self.generate_from_ids(prompts, decoding, 1 if len(prompts) == 1 else batch_size)
        return [generated[number] for number in prompts]

    def log_likelihood(
        self, texts: Sequence[str | tuple[str, str]], batch_size: int = INFERENCE_BATCH_SIZE
    ) -> LogLikelihoods:
        r"""Compute the log-likelihood of each text, or of each completion given its prompt.

        .. math:: \log p(y \mid x) = \sum_t \log p(y_t \mid y_{<t}, x)

        The end token of a text counts. A forced prefix, such as a language token, does not.

        Args:
          texts: texts (decoder-only models), or (prompt, completion) pairs.
          batch_size: texts in one batch.

        Raises:
          KdError: if a text is too long, or an encoder-decoder gets a text without a prompt.
        """
        segments = [Segment(i, self._encode_target(text), 1.0, {}) for i, text in enumerate(texts)]
        sums, tokens = np.zeros(len(segments)), np.zeros(len(segments), np.int64)
        if not segments:
            return LogLikelihoods(sums, tokens)
        lengths_N2 = np.asarray([(len(x.encoded.prompt), len(x.encoded.completion)) for x in segments])
        padded_N2 = padded_lengths(lengths_N2, self._buckets, self._layout)
        for shape in np.unique(padded_N2, axis=0):
            bucket = Bucket(int(shape[0]), int(shape[1]))
            rows = rows_per_batch(batch_size, 1, int(self._layout.sizes(shape).max()))
            for indices in chunks(np.flatnonzero((padded_N2 == shape).all(-1)), rows):
                batch = self._layout.batch([[segments[i]] for i in indices], rows, bucket, {})
                nll_B = self._devices.to_host(self._likelihood_program(self.params, self._devices.shard(batch)))
                sums[indices] = -nll_B[: len(indices)]
                tokens[indices] = np.asarray(batch.mask_BT).sum(-1)[: len(indices)]
        return LogLikelihoods(sums, tokens)

    def encode(self, prompt: str) -> np.ndarray:
        """Return the token ids of a prompt, int32 [P]; one that is too long is an error."""
        ids = self._encode_prompt(prompt)
        if len(ids) >= self._max_length:
            raise KdError(f"prompt: expected fewer than {self._max_length} tokens, got {len(ids)}. Shorten the prompt.")
        return ids

    def generate_from_ids(
        self, prompts: Mapping[int, np.ndarray], decoding: Decoding, batch_size: int = INFERENCE_BATCH_SIZE
    ) -> dict[int, str]:
        """Return number -> generated text; the number and the seed decide a sampled text.

        Args:
          prompts: number -> token ids, int32 [P].
          decoding: settings of generation; beam search if its beam is above 1.
          batch_size: prompts generated together.
        """
        program = self._generate_program(decoding)
        batches = PromptBatches(
            list(prompts.values()), self._layout, self._prompt_lengths, batch_size, 1, list(prompts)
        )
        texts: dict[int, str] = {}
        for (_, numbers), inputs in zip(batches.plan, batches, strict=True):
            ids_BT = self._devices.to_host(program(self.params, self._devices.shard(inputs)))
            for number, ids_T in zip(numbers, ids_BT, strict=False):  # the last rows of a batch may be padding
                texts[int(number)] = decoding_text.to_text(ids_T, self.tokenizer)
        return texts

    def _encode_target(self, text: str | tuple[str, str]) -> Encoded:
        """Return a text, or a completion after its prompt, whose tokens count."""
        if isinstance(text, str):
            if self.architecture.family == "encoder_decoder":
                raise KdError(
                    f"texts: expected text pairs for an encoder-decoder, got the text {text[:30]!r}. Add prompts."
                )
            prompt, completion, prefix = np.zeros(0, np.int32), text, ()
        else:
            prompt, completion, prefix = self.encode(text[0]), text[1], self.tokenizer.forced_prefix
        ids = encode_text(completion, self.tokenizer)
        if len(prefix) + len(ids) > self._max_length:
            raise KdError(f"texts: expected at most {self._max_length} tokens, got {len(ids)}: {completion[:30]!r}.")
        return append_completion(prompt, np.zeros(len(prompt), bool), prefix, ids)

    def _compile_generate(self, decoding: Decoding) -> Compiled:
        generate = functools.partial(
            decoding_text.generate,
            model=self.model,
            architecture=self.architecture,
            way=decoding.ways[-1],
            decoding=decoding,
            tokens=decoding_text.TextTokens.of(self.tokenizer),
        )
        return self._devices.compile(generate)
