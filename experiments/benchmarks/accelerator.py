"""Check and time kd_jax on a machine with one GPU or TPU, in under eight minutes.

    python experiments/benchmarks/accelerator.py --json accelerator.json

    correctness   results of the accelerator against those of the CPU in float32, on random inputs
    student_step  a student's update: cross-entropy, cached top-k, teacher in the step; packed rows, bfloat16
    fused_head    output layer and loss, beside its matrix products alone, Liger's kernels (PyTorch) and tokamax's
    decoding      the compiled greedy loop, beside `generate` of transformers
    attention     forward and backward at 1,024 to 8,192 tokens, beside cuDNN's, tokamax's and PyTorch's

Inputs and parameters are random, and nothing is downloaded. Libraries that are missing are rows of the tables. Each
part runs in its own process for --seconds; cases that do not fit are skipped, and the tables say so. The cases of a
part take turns; figures are medians. "first" is the first call with its compilation. Shares are of the peak rates in
kd_jax.runtime.chips, or of --tflops and --bandwidth. The exit status is 1 if a check failed, or a case of kd_jax.

--tiny checks the script itself: small shapes, on a CPU too.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax import (
    Batch,
    DecoderOnly,
    Head,
    Model,
    Online,
    Optimizer,
    StepInputs,
    Term,
    TokenInputs,
    TopK,
    count_tokens,
    cross_entropy,
    forward_kl,
    fused_head,
    greedy,
    init_state,
    jensen_shannon,
    loss_fn,
    total_loss,
    train_step,
)
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.models.attend import KERNELS, Visibility, attend, attend_plain
from kd_jax.models.flops import TRAINING, count_workload, flops_per_unit
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.chips import local_chip
from kd_jax.runtime.target import lowering_for
from kd_jax.tasks.base import Encoded

Row = dict[str, Any]
START, NO_END = 1, -2  # the start token; an id that no text has, so that none ends early
TURNS, FEWEST_TURNS = 5, 3
CE = Term(cross_entropy, weight=0.5)
KERNELS_OF = {"cpu": ("plain", "blocks"), "gpu": ("plain", "blocks", "triton"), "tpu": ("plain", "blocks", "splash")}
# Largest difference, as a fraction of the largest value. XLA's operations multiply in float32; kernels may take TF32.
# In bfloat16 the kernels, interpreted on a CPU, differ by 2e-3 to 5e-3.
BOUNDS = {"float32": 1e-4, "kernel": 5e-3, "bfloat16": 1.5e-2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Attributes:
      student: the student.
      teacher: the teacher in the step.
      vocab_size: number of tokens.
      rows: rows of a batch.
      length: tokens of a row.
      texts: shortest and longest text that is packed into a row.
      head_tokens: tokens of the part fused_head.
      prompt: tokens of a prompt.
      text: tokens that are decoded.
      batches: batches of texts that are decoded.
      lengths: tokens of a row of the part attention.
      attention_tokens: tokens of all rows of that part.
      checked: architecture of the checks, in float32.
      checked_vocab: number of tokens of the checks.
      checked_length: tokens of the checks of attention; no multiple of a kernel's block.
      head_shape: (N, D, V) of the check of the fused head.
      turn: seconds of a turn, about.
    """

    student: DecoderOnly
    teacher: DecoderOnly
    vocab_size: int
    rows: int
    length: int
    texts: tuple[int, int]
    head_tokens: int
    prompt: int
    text: int
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    attention_tokens: int
    checked: DecoderOnly
    checked_vocab: int
    checked_length: int
    head_shape: tuple[int, int, int]
    turn: float


BFLOAT16: Any = {"dropout": 0.0, "compute": "bfloat16", "scan_layers": True}
FULL = Sizes(
    student=DecoderOnly(12, d_model=768, heads=12, kv_heads=4, d_ff=2048, **BFLOAT16),
    teacher=DecoderOnly(24, d_model=1024, heads=16, kv_heads=4, d_ff=2816, **BFLOAT16),
    vocab_size=49_152,
    rows=16,
    length=2048,
    texts=(64, 1024),
    head_tokens=16_384,
    prompt=128,
    text=128,
    batches=(1, 32),
    lengths=(1024, 8192, 4096, 2048),  # if time is short, the last ones are skipped
    attention_tokens=16_384,
    checked=DecoderOnly(2, d_model=256, heads=4, kv_heads=2, d_ff=512, dropout=0.0),
    checked_vocab=1000,
    checked_length=400,
    head_shape=(1024, 768, 32_000),  # two chunks, and the matrix's gradient in strips
    turn=0.1,
)
TINY = Sizes(
    student=DecoderOnly(2, d_model=32, heads=4, kv_heads=2, d_ff=64, **BFLOAT16),
    teacher=DecoderOnly(4, d_model=32, heads=4, kv_heads=2, d_ff=64, **BFLOAT16),
    vocab_size=512,
    rows=2,
    length=128,
    texts=(8, 64),
    head_tokens=512,
    prompt=8,
    text=8,
    batches=(1, 4),
    lengths=(128, 256),
    attention_tokens=256,
    checked=DecoderOnly(1, d_model=32, heads=4, kv_heads=2, d_ff=64, dropout=0.0),
    checked_vocab=100,
    checked_length=160,
    head_shape=(64, 32, 100),
    turn=0.005,
)


class Setting(NamedTuple):
    """Sizes and options of a part.

    Attributes:
      sizes: shapes.
      k: tokens of the teacher's top-k.
      flops: peak FLOP/s of the device; None if it is unknown.
      bandwidth: peak bytes/s of its memory; None if it is unknown.
      deadline: time.monotonic() at which no further case begins.
      tiny: whether the run checks the script alone.
    """

    sizes: Sizes
    k: int
    flops: float | None
    bandwidth: float | None
    deadline: float
    tiny: bool


# Cases and their turns


class NotHereError(Exception):
    """A case that cannot run on this machine; the message says why."""


class Program(NamedTuple):
    """A compiled case.

    Attributes:
      first: seconds of the first call with its compilation.
      memory: bytes of temporary memory; None if unknown.
      run: makes a number of calls, waits for their end and returns their seconds.
    """

    first: float
    memory: int | None
    run: Callable[[int], float]


class Case(NamedTuple):
    """A case of a table: its name, whose it is, and how it is compiled; `facts` are further figures of its row."""

    name: str
    who: str
    prepare: Callable[[], Program]
    facts: Mapping[str, Any] = {}


def describe(error: Exception) -> str:
    """Return the status of a case that raised."""
    if isinstance(error, NotHereError):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    is_memory = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    # Triton's kernels and TPUs name their small memories too; those are limits of a kernel.
    if is_memory and not any(word in text.lower() for word in ("shared memory", "vmem", "smem")):
        return "out of memory"
    return f"failed: {text[:200]}"


def skipped() -> str:
    """Return the status of a case for which no time was left."""
    return "skipped: no time left"


def announce(case: str) -> None:
    """Print the case that begins, for those who wait and for runs that do not end."""
    print(f"  {case}", file=sys.stderr, flush=True)


def take_turns(cases: Sequence[Case], setting: Setting) -> list[Row]:
    """Compile the cases, run them in turns, and return a row for each with its seconds."""
    rows: list[Row] = [{"case": case.name, "who": case.who, "status": "ok", **case.facts} for case in cases]
    programs: dict[int, tuple[Program, int]] = {}
    for i, case in enumerate(cases):
        if time.monotonic() > setting.deadline:
            rows[i]["status"] = skipped()
            continue
        announce(f"{case.name}, {case.who}")
        try:
            one = case.prepare()
            calls = int(np.clip(setting.sizes.turn / max(one.run(1), 1e-6), 1, 50))
        except Exception as error:  # one line of the table
            rows[i]["status"] = describe(error)
            continue
        programs[i] = one, calls
        rows[i] |= {"first": one.first, "memory": one.memory}
    seconds: dict[int, list[float]] = {i: [] for i in programs}
    for turn in range(TURNS):
        for i, (one, calls) in programs.items():
            if rows[i]["status"] != "ok" or (turn >= FEWEST_TURNS and time.monotonic() > setting.deadline):
                continue
            try:
                seconds[i].append(one.run(calls) / calls)
            except Exception as error:
                rows[i]["status"] = describe(error)
    for i, times in seconds.items():
        if rows[i]["status"] == "ok":
            rows[i]["seconds"] = statistics.median(times)
    return rows


def temporary_memory(compiled: Any) -> int | None:
    """Return the bytes of temporaries of a compiled program, or None where XLA does not say."""
    with contextlib.suppress(Exception):
        return int(compiled.memory_analysis().temp_size_in_bytes)
    return None


def compile_case(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile a function and call it once."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    first = time.perf_counter() - start

    def run(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            out = compiled(*arguments)
        jax.block_until_ready(out)
        return time.perf_counter() - start

    return Program(first, temporary_memory(compiled), run)


def not_here(reason: str) -> Callable[[], Program]:
    """Return the preparation of a case that cannot run."""

    def prepare() -> Program:
        raise NotHereError(reason)

    return prepare


def share(done: float, seconds: float, peak: float | None) -> float | None:
    """Return done / seconds as a fraction of the peak."""
    return done / seconds / peak if peak else None


class Torch:
    """The process of sides/torch_rates.py, which starts anew after it has died."""

    def __init__(self, setting: Setting):
        """Start the process, so that it imports PyTorch while JAX compiles."""
        self.setting, self.process = setting, None
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as this object
        self.installed = importlib.util.find_spec("torch") is not None
        if self.installed and jax.default_backend() != "tpu":
            self.start()

    def start(self) -> subprocess.Popen[str]:
        """Return the process, started if it is not running."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, str(Path(__file__).parent / "sides/torch_rates.py")]
            command += ["--cpu"] if self.setting.tiny and jax.default_backend() == "cpu" else []
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.log, text=True)
        return self.process

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        if not self.installed:
            raise NotHereError("not installed")
        if jax.default_backend() == "tpu":
            raise NotHereError("not on this platform")
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout=max(10.0, self.setting.deadline - time.monotonic())):
                process.kill()
                raise NotHereError(skipped())
        line = process.stdout.readline()
        if not line:
            self.log.seek(0)
            last = (self.log.read().strip().split("\n") or [""])[-1]
            raise RuntimeError(f"the process ended with status {process.wait()}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotHereError(answer["error"]) if answer.get("not_here") else RuntimeError(answer["error"])
        return answer

    def case(self, name: str, who: str, case: str, sizes: Mapping[str, Any], **facts: Any) -> Case:
        """Return a case that this process runs."""
        key = f"{name} {who}"

        def prepare() -> Program:
            answer = self.ask(do="prepare", key=key, case=case, sizes=dict(sizes))
            return Program(
                answer["first"], answer["memory"], lambda calls: self.ask(do="run", key=key, calls=calls)["seconds"]
            )

        return Case(name, who, prepare, facts)

    def drop(self) -> None:
        """Free the memory of all cases."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(Exception):
                self.ask(do="drop")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


# Random inputs


def packed_batch(sizes: Sizes, rows: int, length: int, vocab_size: int, seed: int = 0) -> Batch:
    """Return a batch on the host whose rows are full of texts of random lengths; all targets count."""
    rng, numbers = np.random.default_rng(seed), iter(range(10**9))
    texts_of_rows = []
    for _ in range(rows):
        row, left = [], length - length // 16  # the end of a row is padding
        while left > 0:
            count = min(left, int(rng.integers(sizes.texts[0], sizes.texts[1] + 1)))
            ids = rng.integers(START + 1, vocab_size, count).astype(np.int32)
            row.append(Segment(next(numbers), Encoded(ids[:0], ids, np.ones(count, bool)), 1.0, {}))
            left -= count
        texts_of_rows.append(row)
    return DecoderOnly(1).layout(START).batch(texts_of_rows, rows, Bucket(0, length), {})


def top_k_records(signal: TopK, count: int, length: int, vocab_size: int) -> Any:
    """Return the top k of a random teacher, arrays [count, length, ...]; not of all logits at once: they are large."""

    def reduce(key: jax.Array) -> Any:
        return signal.reduce(4 * jax.random.normal(key, (length, vocab_size)))

    return jax.jit(lambda keys: jax.lax.map(reduce, keys))(jax.random.split(jax.random.key(3), count))


def with_top_k(batch: Batch, signal: TopK, vocab_size: int) -> Batch:
    """Return the batch with the top k of a random teacher."""
    rows, length = batch.targets_BT.shape
    return batch._replace(payload={signal.name: top_k_records(signal, rows, length, vocab_size)})


def terms_of(case: str, k: int) -> dict[str, Term]:
    """Return the objective of a case."""
    signals = {"cached top-k": TopK(k=k), "online teacher": Online()}
    return {"ce": CE} | ({"kd": Term(forward_kl, weight=0.5, signal=signals[case])} if case in signals else {})


OBJECTIVES = ("cross-entropy", "cached top-k", "online teacher")


def init(model: Model, seed: int) -> Any:
    """Return random parameters, as training holds them."""
    return model.stack(jax.jit(model.init)(jax.random.key(seed)))


# Part 1: correctness


def difference(got: Any, want: Any) -> float:
    """Return the largest difference of two trees' arrays, as a fraction of the array's largest value."""
    fractions = [
        float(np.abs(np.float64(g) - np.float64(w)).max() / max(np.abs(np.float64(w)).max(), 1e-30))
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    ]
    return float("inf") if np.isnan(fractions).any() else max(fractions)


def on_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return a function's result on the CPU, as numpy arrays."""
    cpu = jax.devices("cpu")[0]
    with lowering_for("cpu"), jax.default_device(cpu):
        return jax.device_get(fresh_jit(function)(*jax.device_put(arguments, cpu)))


def fresh_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the jitted function with a trace of its own: JAX keeps one a function, whatever the platform."""
    return jax.jit(lambda *arguments: function(*arguments))


def on_device(function: Callable[..., Any], *arguments: Any, precision: str = "highest") -> Any:
    """Return a function's result on the accelerator, with products of float32 in float32, as numpy arrays."""
    device = jax.local_devices()[0]
    with jax.default_matmul_precision(precision):
        return jax.device_get(fresh_jit(function)(*jax.device_put(arguments, device)))


def check_row(name: str, bound: float, setting: Setting, errors: Callable[[], tuple[float, float | None]]) -> Row:
    """Return the row of a check from a function that returns the errors of the value and the gradient."""
    row: Row = {"case": name, "who": "kd_jax", "bound": bound}
    if time.monotonic() > setting.deadline:
        return row | {"status": skipped()}
    announce(name)
    start = time.perf_counter()
    try:
        value, gradient = errors()
    except Exception as error:
        return row | {"status": describe(error)}
    passed = value <= bound and (gradient is None or gradient <= bound)
    row |= {"value_error": value, "gradient_error": gradient, "seconds": time.perf_counter() - start}
    return row | {"status": "passed" if passed else "failed: the error is above its bound"}


def check_gradient(
    function: Callable[..., jax.Array], argnums: int | tuple[int, ...], *arguments: Any
) -> tuple[float, float]:
    """Return the errors of a function's value and of its gradient."""
    gradient = jax.value_and_grad(function, argnums)
    got, want = on_device(gradient, *arguments), on_cpu(gradient, *arguments)
    return difference(got[0], want[0]), difference(got[1], want[1])


def check_student(case: str, attention: Any, sizes: Sizes, k: int) -> tuple[float, float]:
    """Return the errors of a student's loss and of its gradient."""
    rows, length = (2, sizes.checked_length) if attention == "flash" else (8, 128)
    model = dataclasses.replace(sizes.checked, attention=attention).build(sizes.checked_vocab)
    deeper = dataclasses.replace(sizes.checked, layers=2 * sizes.checked.layers, attention=attention)
    teacher = deeper.build(sizes.checked_vocab)
    batch = packed_batch(sizes, rows, length, sizes.checked_vocab)
    if case == "cached top-k":
        batch = jax.device_get(with_top_k(batch, TopK(k=k), sizes.checked_vocab))
    online = case == "online teacher"
    params, teacher_params = jax.device_get((init(model, 0), init(teacher, 1)))

    def loss(params: Any, teacher_params: Any, batch: Batch) -> jax.Array:
        counts = count_tokens(batch)
        options: Any = {"model": model, "terms": terms_of(case, k), "teacher": teacher if online else None}
        return loss_fn((params, {}), batch, counts, None, teacher_params if online else None, **options)[0]

    return check_gradient(loss, 0, params, teacher_params, batch)


def check_fused_head(sizes: Sizes, k: int) -> tuple[float, float]:
    """Return the errors of cross-entropy and top-k through the fused head, and of both gradients."""
    n, d, v = sizes.head_shape
    rng, signal = np.random.default_rng(0), TopK(k=k)
    hidden_ND, kernel_DV = (rng.standard_normal(shape, np.float32) for shape in ((n, d), (d, v)))
    payload = jax.device_get(jax.jit(signal.reduce)(4 * rng.standard_normal((n, v), np.float32)))
    targets_N = rng.integers(0, v, n).astype(np.int32)
    tokens = TokenInputs(targets_N, np.ones(n, bool), np.ones(n, np.float32), {signal.name: payload})  # pyright: ignore

    def loss(hidden_ND: jax.Array, kernel_DV: jax.Array, tokens: TokenInputs) -> jax.Array:
        objective = functools.partial(total_loss, terms_of("cached top-k", k))
        result: Any = fused_head(objective, hidden_ND, Head(kernel_DV), tokens, StepInputs(jnp.int32(0)))
        return result[0]

    return check_gradient(loss, (0, 1), hidden_ND, kernel_DV * d**-0.5, tokens)


def check_greedy(sizes: Sizes) -> tuple[float, None]:
    """Return the share of greedy tokens that differ."""
    rng, model = np.random.default_rng(0), sizes.checked.build(sizes.checked_vocab)
    prompts = [rng.integers(START + 1, sizes.checked_vocab, count).astype(np.int32) for count in (3, 8, 5, 7)]
    inputs = sizes.checked.layout(START).prompts(prompts, len(prompts), 8)
    decode = functools.partial(greedy, model, eos=NO_END, length=32)
    params = jax.device_get(init(model, 0))
    got_BT, want_BT = on_device(decode, params, inputs), on_cpu(decode, params, inputs)
    assert got_BT.shape == (4, 32) and (want_BT >= 0).all()
    return float((got_BT != want_BT).mean()), None


def segments(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return segments of two rows: three texts and padding, one text and padding."""
    ends = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
    packed = np.repeat([1, 2, 3, 0], np.diff(np.array([0, *ends, length])))
    return np.stack([packed, np.arange(length) < length - length // 8]).astype(np.int32)


# name -> (key heads of 4, options of Visibility, whether keys are of other tokens)
ATTENTION_CASES: dict[str, tuple[int, dict[str, Any], bool]] = {
    "packed": (4, {"causal": True}, False),
    "grouped": (2, {"causal": True}, False),
    "padded": (4, {}, False),
    "window": (2, {"causal": True, "window": 70}, False),
    "cross": (4, {}, True),
}


class AttentionInputs(NamedTuple):
    """Inputs of a check of attention.

    Attributes:
      q: queries [B, H, T, d].
      k: keys [B, G, S, d].
      v: values [B, G, S, d].
      query_BT: segments of the queries.
      key_BS: segments of the keys.
      weights: factors [B, T, H d] on the result, whose sum is differentiated; 0 at padding.
    """

    q: Any
    k: Any
    v: Any
    query_BT: Any
    key_BS: Any
    weights: Any


def attention_result(inputs: AttentionInputs, function: Callable[..., jax.Array], options: Mapping[str, Any]) -> Any:
    """Return (the result without padding, the gradients with respect to queries, keys and values)."""
    visibility = Visibility(inputs.query_BT, inputs.key_BS, **options)

    def loss(q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        out = function(q, k, v, visibility).astype(jnp.float32)
        return (out * inputs.weights).sum(), out * (inputs.weights != 0)

    gradient, out = jax.grad(loss, (0, 1, 2), has_aux=True)(inputs.q, inputs.k, inputs.v)
    return out, gradient


@functools.cache
def attention_inputs(case: str, dtype: Any, length: int) -> tuple[AttentionInputs, Any]:
    """Return the inputs of a check, and the CPU's result; the kernels share them."""
    groups, options, cross = ATTENTION_CASES[case]
    width, rng = 64, np.random.default_rng(0)
    query_BT = segments(length, rng)
    key_BS = segments(length // 2, rng) if cross else query_BT
    shapes = [(2, 4, length, width), *[(2, groups, key_BS.shape[1], width)] * 2]
    # Both sides start from values that the dtype has, so that the error is of the computation alone.
    q, k, v = (np.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    weights = rng.standard_normal((2, length, 4 * width)).astype(np.float32) * (query_BT > 0)[..., None]
    inputs = AttentionInputs(q, k, v, query_BT, key_BS, weights)
    inputs_float32 = inputs._replace(q=q.astype(np.float32), k=k.astype(np.float32), v=v.astype(np.float32))
    reference = lambda q, k, v, visibility: attend(q, k, v, visibility.bias())  # noqa: E731
    return inputs, on_cpu(functools.partial(attention_result, function=reference, options=options), inputs_float32)


def check_attention(kernel: str, case: str, dtype: Any, sizes: Sizes) -> tuple[float, float]:
    """Return the errors of attention and of its gradients with respect to queries, keys and values."""
    inputs, (want, want_gradient) = attention_inputs(case, dtype, sizes.checked_length)

    def plain(q: Any, k: Any, v: Any, visibility: Visibility) -> jax.Array:
        return attend_plain(q, k, v, visibility.bias(), causal=visibility.causal)

    function: Any = plain if kernel == "plain" else KERNELS[kernel]  # pyright: ignore[reportArgumentType]
    result = functools.partial(attention_result, function=function, options=ATTENTION_CASES[case][1])
    # Kernels of TPUs know no higher precision of products of bfloat16.
    out, gradient = on_device(result, inputs, precision="highest" if dtype == np.float32 else "default")
    return difference(out, want), difference(gradient, want_gradient)


def correctness(setting: Setting) -> Iterator[Row]:
    """Compare the accelerator with the CPU."""
    sizes, backend, row = setting.sizes, jax.default_backend(), functools.partial(check_row, setting=setting)
    bound = BOUNDS["float32"]
    for case in OBJECTIVES:
        yield row(f"student, {case}", bound, errors=lambda c=case: check_student(c, "plain", sizes, setting.k))
    n, _, v = sizes.head_shape
    name = f"fused head, top-k, {n:,} of {v:,} tokens"
    yield row(name, bound, errors=lambda: check_fused_head(sizes, setting.k))
    yield row("greedy tokens that differ", 0.0, errors=lambda: check_greedy(sizes))
    # Kernels come last: one that fails may end the process.
    for kernel in ("plain", "blocks", "splash", "triton"):
        for case, (_, options, cross) in ATTENTION_CASES.items():
            if kernel == "triton" and ("window" in options or cross):
                continue
            name = f"attention, {kernel}, {case}"
            if kernel not in KERNELS_OF[backend]:
                yield {"case": name, "who": "kd_jax", "status": "not on this platform"}
                continue
            is_kernel = kernel in ("splash", "triton")
            check = functools.partial(check_attention, kernel, case, sizes=sizes)
            yield row(name, BOUNDS["kernel" if is_kernel else "float32"], errors=lambda f=check: f(dtype=np.float32))
            if is_kernel:
                yield row(f"{name}, bfloat16", BOUNDS["bfloat16"], errors=lambda f=check: f(dtype=jnp.bfloat16))
    yield row("student, flash", BOUNDS["kernel"], errors=lambda: check_student("ce", "flash", sizes, setting.k))


# Part 2: the student's step


def step_case(name: str, student: DecoderOnly, batch: Batch, setting: Setting) -> Case:
    """Return the case of an objective's training step."""
    sizes, online = setting.sizes, name == "online teacher"
    model, teacher = student.build(sizes.vocab_size), sizes.teacher.build(sizes.vocab_size)
    flops = TRAINING * flops_per_unit(model, jax.eval_shape(model.init, jax.random.key(0))).dot(count_workload(batch))
    if online:
        units = flops_per_unit(teacher, jax.eval_shape(teacher.init, jax.random.key(0)))
        flops += units.dot(count_workload(batch))

    def prepare() -> Program:
        device_batch, tx = batch, Optimizer(warmup=100).build(1000)
        if name == "cached top-k":
            device_batch = with_top_k(batch, TopK(k=setting.k), sizes.vocab_size)
        state = init_state(jax.random.key(1), init(model, 0), tx)
        teacher_params = init(teacher, 2) if online else None
        device_batch = jax.block_until_ready(jax.device_put(device_batch))
        options: Any = {"model": model, "terms": terms_of(name, setting.k), "tx": tx}
        step = functools.partial(train_step, teacher=teacher if online else None, **options)
        start = time.perf_counter()
        compiled = (
            make_devices("jit").compile_sums(step, donate=True).lower(state, device_batch, teacher_params).compile()
        )
        state, sums = compiled(state, device_batch, teacher_params)
        jax.block_until_ready(sums)
        first = time.perf_counter() - start

        def run(calls: int) -> float:
            nonlocal state, sums
            start = time.perf_counter()
            for _ in range(calls):
                state, sums = compiled(state, device_batch, teacher_params)
            jax.block_until_ready(sums)
            if not np.isfinite(float(sums["loss"].value)):
                raise FloatingPointError("the loss is not finite")
            return time.perf_counter() - start

        return Program(first, temporary_memory(compiled), run)

    return Case(name, "kd_jax", prepare, {"attention": student.attention, "flops": flops})


def student_step(setting: Setting) -> Iterator[Row]:
    """Time the student's step of each objective."""
    sizes = setting.sizes
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 1e12)
    rows_of_batch = sizes.rows if limit > 40e9 else min(sizes.rows, 4)
    batch = packed_batch(sizes, rows_of_batch, sizes.length, sizes.vocab_size)
    # If the kernel of this platform fails, the step is timed without it too.
    plain = dataclasses.replace(sizes.student, attention="plain", remat="layer")
    for student in (sizes.student, plain):
        rows = take_turns([step_case(name, student, batch, setting) for name in OBJECTIVES], setting)
        base = rows[0].get("seconds")
        stats = jax.local_devices()[0].memory_stats() or {}
        for row in rows:
            row |= {"rows": rows_of_batch, "length": sizes.length, "device_peak": stats.get("peak_bytes_in_use")}
            if seconds := row.get("seconds"):
                row["tokens_per_second"] = int(batch.mask_BT.sum()) / seconds
                row["of_ce"] = seconds / base if base else None
                row["peak_share"] = share(row["flops"], seconds, setting.flops)
            yield row
        if not rows[0]["status"].startswith("failed"):
            return


# Part 3: the fused head


def head_cases(setting: Setting, torch: Torch) -> list[Case]:
    """Return the cases of the output layer with loss and gradients, all in bfloat16."""
    sizes, k = setting.sizes, setting.k
    n, d, v = sizes.head_tokens, sizes.student.d_model, sizes.vocab_size
    keys = jax.random.split(jax.random.key(0), 6)
    normal = functools.partial(jax.random.normal, dtype=jnp.bfloat16)
    hidden_ND, teacher_ND = normal(keys[0], (n, d)), normal(keys[1], (n, d))
    kernel_DV, teacher_DV = normal(keys[2], (d, v)) * d**-0.5, normal(keys[3], (d, v)) * 4 * d**-0.5
    plain = TokenInputs(jax.random.randint(keys[4], (n,), 0, v), jnp.ones(n, bool), jnp.ones(n), {})
    product = 2.0 * n * d * v
    floor = {"flops": 3 * product}, {"flops": 4 * product}

    def products(hidden_ND: Any, kernel_DV: Any, d_logits_NV: Any) -> Any:
        d_kernel_DV = jnp.matmul(hidden_ND.T, d_logits_NV, preferred_element_type=jnp.float32)
        return hidden_ND @ kernel_DV, d_logits_NV @ kernel_DV.T, d_kernel_DV

    def floor_case(with_teacher: bool) -> Program:
        d_logits_NV = normal(keys[5], (n, v))
        if not with_teacher:
            return compile_case(products, hidden_ND, kernel_DV, d_logits_NV)
        both = lambda *args: (products(*args[:3]), args[3] @ args[4])  # noqa: E731
        return compile_case(both, hidden_ND, kernel_DV, d_logits_NV, teacher_ND, teacher_DV)

    def ours(terms: Mapping[str, Term], chunk: int = 0) -> Program:
        tokens, shared = plain, StepInputs(jnp.int32(0))
        for term in terms.values():
            if isinstance(term.signal, TopK):
                records = top_k_records(term.signal, n // 256, 256, v)
                records = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), records)
                tokens = tokens._replace(payload={term.signal.name: records})
            if isinstance(term.signal, Online):
                tokens = tokens._replace(teacher_hidden=teacher_ND)
                shared = shared._replace(teacher_head=Head(teacher_DV))

        def loss(hidden_ND: Any, kernel_DV: Any, tokens: TokenInputs, shared: StepInputs) -> jax.Array:
            objective = functools.partial(total_loss, terms)
            result: Any = fused_head(objective, hidden_ND, Head(kernel_DV), tokens, shared, chunk)
            return result[0]

        return compile_case(jax.value_and_grad(loss, (0, 1)), hidden_ND, kernel_DV, tokens, shared)

    def unfused(hidden_ND: Any, kernel_DV: Any, targets_N: Any) -> jax.Array:
        logits_NV = jnp.matmul(hidden_ND, kernel_DV, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits_NV, targets_N).mean()

    def tokamax_ce() -> Program:
        import tokamax  # pyright: ignore[reportMissingImports]

        implementation = "mosaic_tpu" if jax.default_backend() == "tpu" else "xla"
        function = functools.partial(
            tokamax.linear_softmax_cross_entropy_loss, reduction="mean", implementation=implementation
        )
        loss = lambda hidden_ND, kernel_DV, targets_N: function(hidden_ND, targets_N, kernel_DV)  # noqa: E731
        return compile_case(jax.value_and_grad(loss, (0, 1)), hidden_ND, kernel_DV, plain.targets)

    ce, top_k = {"ce": Term(cross_entropy)}, {"kd": Term(forward_kl, signal=TopK(k=k))}
    jsd = {"kd": Term(jensen_shannon, signal=Online())}
    chunks = [chunk for chunk in (1024, 4096) if chunk < n] if not setting.tiny else [128]
    unfused_gradient = jax.value_and_grad(unfused, (0, 1))
    tokamax = tokamax_ce if is_installed("tokamax") else not_here("not installed")
    shape = {"tokens": n, "width": d, "vocab_size": v}
    return [
        Case("cross-entropy", "products alone", lambda: floor_case(False), floor[0]),
        Case("cross-entropy", "kd_jax", lambda: ours(ce), floor[0]),
        *[Case(f"cross-entropy, chunks of {c}", "kd_jax", lambda c=c: ours(ce, c), floor[0]) for c in chunks],
        Case(
            "cross-entropy",
            "XLA, unfused",
            lambda: compile_case(unfused_gradient, hidden_ND, kernel_DV, plain.targets),
            floor[0],
        ),
        torch.case("cross-entropy", "torch, unfused", "linear_ce", shape, **floor[0]),
        torch.case("cross-entropy", "liger", "liger_ce", shape, **floor[0]),
        Case("top-k", "kd_jax", lambda: ours(top_k), floor[0]),
        *[Case(f"top-k, chunks of {c}", "kd_jax", lambda c=c: ours(top_k, c), floor[0]) for c in chunks],
        Case("JSD, online", "products alone", lambda: floor_case(True), floor[1]),
        Case("JSD, online", "kd_jax", lambda: ours(jsd), floor[1]),
        *[Case(f"JSD, online, chunks of {c}", "kd_jax", lambda c=c: ours(jsd, c), floor[1]) for c in chunks],
        torch.case("JSD, online", "liger", "liger_jsd", shape, **floor[1]),
        Case("cross-entropy", "tokamax", tokamax, floor[0]),
    ]


def fused_head_part(setting: Setting) -> Iterator[Row]:
    """Time the output layer and its losses."""
    torch = Torch(setting)
    try:
        rows = take_turns(head_cases(setting, torch), setting)
    finally:
        torch.close()
    floors = {row["flops"]: row.get("seconds") for row in rows if row["who"] == "products alone"}
    for row in rows:
        if seconds := row.get("seconds"):
            row["peak_share"] = share(row["flops"], seconds, setting.flops)
            row["of_floor"] = seconds / floors[row["flops"]] if floors[row["flops"]] else None
        yield row


# Part 4: decoding


def llama(architecture: DecoderOnly, vocab_size: int) -> dict[str, Any]:
    """Return the options of transformers' LlamaConfig for an architecture."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": architecture.d_model,
        "intermediate_size": architecture.d_ff,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.key_heads,
        "head_dim": architecture.head_width,
        "rms_norm_eps": architecture.norm_epsilon,
        "tie_word_embeddings": True,
    }


def decoding(setting: Setting) -> Iterator[Row]:
    """Time greedy decoding of texts of one length, from prompts of one length."""
    sizes, torch = setting.sizes, Torch(setting)
    architecture = dataclasses.replace(sizes.student, scan_layers=False)
    model = architecture.build(sizes.vocab_size)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), jax.jit(model.init)(jax.random.key(0)))
    slots = sizes.prompt + sizes.text / 2  # that a token sees, on average
    cache = 2 * 2 * architecture.layers * architecture.key_heads * architecture.head_width * slots  # bytes of a text
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    decode = functools.partial(greedy, model, eos=NO_END, length=sizes.text)
    rng = np.random.default_rng(0)

    def ours(batch: int) -> Program:
        prompts = rng.integers(START + 1, sizes.vocab_size, (batch, sizes.prompt - 1)).astype(np.int32)
        inputs = jax.device_put(architecture.layout(START).prompts(list(prompts), batch, sizes.prompt - 1))
        return compile_case(decode, params, inputs)

    try:
        for batch in sizes.batches:
            facts = {"batch": batch, "bytes": sizes.text * (weights + batch * cache)}
            shape: Row = {"model": llama(architecture, sizes.vocab_size), "batch": batch}
            shape |= {"prompt": sizes.prompt, "length": sizes.text}
            name = f"batch {batch}"
            cases = [
                Case(name, "kd_jax", functools.partial(ours, batch), facts),
                torch.case(name, "transformers", "generate", shape, **facts),
                torch.case(name, "transformers, static cache", "generate_static", shape, **facts),
            ]
            # The last one compiles too; if that takes too long, its process ends, and others with it.
            rows = take_turns(cases[:2], setting) + take_turns(cases[2:], setting)
            torch.drop()
            for row in rows:
                if seconds := row.get("seconds"):
                    row["tokens_per_second"] = batch * sizes.text / seconds
                    row["bandwidth_share"] = share(row["bytes"], seconds, setting.bandwidth)
                    row["ours_over_theirs"] = seconds / rows[0]["seconds"] if "seconds" in rows[0] else None
                yield row
    finally:
        torch.close()


# Part 5: attention


def attention(setting: Setting) -> Iterator[Row]:
    """Time causal attention, forward and backward, in bfloat16."""
    torch = Torch(setting)
    try:
        # tokamax's kernels run in this process: one that breaks the device must not take ours with it.
        for of_tokamax in (False, True):
            for length in setting.sizes.lengths:
                cases = attention_cases(length, setting, torch)
                rows = take_turns([case for case in cases if (case.who == "tokamax") == of_tokamax], setting)
                torch.drop()
                for row in rows:
                    if seconds := row.get("seconds"):
                        row["peak_share"] = share(row["flops"], seconds, setting.flops)
                    yield row
    finally:
        torch.close()


def attention_cases(length: int, setting: Setting, torch: Torch) -> list[Case]:
    """Return the cases of one length."""
    sizes, backend = setting.sizes, jax.default_backend()
    heads, groups, width = sizes.student.heads, sizes.student.key_heads, sizes.student.head_width
    batch = max(1, sizes.attention_tokens // length)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, w = (
        jax.random.normal(key, (batch, n, length, width), jnp.bfloat16)
        for key, n in zip(keys, (heads, groups, groups, heads), strict=True)
    )
    visible = Visibility(*[jnp.ones((batch, length), jnp.int32)] * 2, causal=True)
    # As in kd_jax.models.flops: two products a pair, and twice as many for the gradients.
    facts = {
        "length": length,
        "batch": batch,
        "flops": TRAINING * 4.0 * batch * heads * width * length * (length + 1) / 2,
    }
    name = f"{batch} x {length:,} tokens"

    def forward_backward(function: Callable[..., jax.Array], *arrays: Any) -> Program:
        def call(q: Any, k: Any, v: Any, w: Any) -> Any:
            out, pull_back = jax.vjp(function, q, k, v)
            return out, pull_back(w.reshape(out.shape))

        return compile_case(call, *arrays)

    def plain(q: Any, k: Any, v: Any) -> jax.Array:
        return attend_plain(q, k, v, visible.bias(), causal=True)

    def ours(kernel: str) -> Program:
        if kernel not in KERNELS_OF[backend]:
            raise NotHereError("not on this platform")
        flash = lambda q, k, v: KERNELS[kernel](q, k, v, visible)  # noqa: E731  # pyright: ignore
        return forward_backward(plain if kernel == "plain" else flash, q, k, v, w.swapaxes(1, 2))

    def by_tokens(function: Callable[..., jax.Array]) -> Program:
        return forward_backward(function, *(x.swapaxes(1, 2) for x in (q, k, v, w)))

    def cudnn() -> Program:
        if backend != "gpu":
            raise NotHereError("not on this platform")
        return by_tokens(functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"))

    def tokamax_attention() -> Program:
        import tokamax  # pyright: ignore[reportMissingImports]

        return by_tokens(functools.partial(tokamax.dot_product_attention, is_causal=True))

    tokamax = tokamax_attention if is_installed("tokamax") else not_here("not installed")
    shape = {"batch": batch, "length": length, "width": width, "heads": heads, "key_heads": groups}
    kernels = ("triton", "splash", "blocks", "plain")
    return [
        *[Case(name, f"kd_jax, {kernel}", functools.partial(ours, kernel), facts) for kernel in kernels],
        Case(name, "jax.nn, cudnn", cudnn, facts),
        Case(name, "tokamax", tokamax, facts),
        torch.case(name, "torch, sdpa", "sdpa", shape, **facts),
    ]


# The command


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "correctness": correctness,
    "student_step": student_step,
    "fused_head": fused_head_part,
    "decoding": decoding,
    "attention": attention,
}
# Time of a part in --seconds. Compilation takes most of it, and the checks compile most.
SHARES = {"correctness": 1.5, "student_step": 1.1, "fused_head": 0.9, "decoding": 0.7, "attention": 1.0}


class Column(NamedTuple):
    """A column of a table: its title, the figure of a row, and how the figure is written."""

    title: str
    figure: str
    write: Callable[[Any], str]


def with_unit(factor: float, digits: int = 1) -> Callable[[float], str]:
    """Return a function that writes a figure times a factor."""
    return lambda x: f"{factor * x:,.{digits}f}"


def percent(x: float) -> str:
    """Write a share."""
    return f"{x:.1%}"


FIRST = [Column("case", "case", str), Column("who", "who", str)]
TIMES = [Column("ms", "seconds", with_unit(1e3, 3)), Column("first, s", "first", with_unit(1))]
MEMORY = Column("temp. MiB", "memory", with_unit(2**-20))
PEAK = Column("of peak FLOP/s", "peak_share", percent)
RATE = Column("tokens/s", "tokens_per_second", with_unit(1, 0))
COLUMNS: dict[str, list[Column]] = {
    "correctness": [
        FIRST[0],
        Column("error", "value_error", lambda x: f"{x:.1e}"),
        Column("of gradient", "gradient_error", lambda x: f"{x:.1e}"),
        Column("bound", "bound", lambda x: f"{x:.0e}"),
        Column("s", "seconds", with_unit(1)),
    ],
    "student_step": [
        *FIRST[:1],
        Column("attention", "attention", str),
        *TIMES,
        RATE,
        Column("of ce", "of_ce", with_unit(1, 2)),
        PEAK,
        MEMORY,
        Column("peak of device, MiB", "device_peak", with_unit(2**-20)),
    ],
    "fused_head": [*FIRST, *TIMES, Column("of products", "of_floor", with_unit(1, 2)), PEAK, MEMORY],
    "decoding": [
        *FIRST,
        *TIMES,
        RATE,
        Column("kd_jax is, x", "ours_over_theirs", with_unit(1, 2)),
        Column("of bandwidth", "bandwidth_share", percent),
    ],
    "attention": [*FIRST, *TIMES, PEAK, MEMORY],
}


def table(part: str, rows: Sequence[Row]) -> str:
    """Return a part's rows as a table in Markdown with aligned columns."""
    columns = [*COLUMNS[part], Column("status", "status", str)]
    cells = [[column.title for column in columns]]
    cells += [
        ["" if row.get(column.figure) is None else column.write(row[column.figure]) for column in columns]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lefts = [column.write is str for column in columns]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(texts, widths, lefts, strict=True)
        ]
        return f"| {' | '.join([*padded[:-1], texts[-1]])} |"  # a status may be long

    rule = ["-" * width if left else "-" * (width - 1) + ":" for width, left in zip(widths, lefts, strict=True)]
    rule[-1] = "------"
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def is_installed(name: str) -> bool:
    """Return whether a module is installed."""
    return importlib.util.find_spec(name) is not None


def versions() -> dict[str, str]:
    """Return the version of each library, or "not installed"."""
    result = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "tokamax", "torch", "transformers", "liger-kernel"):
        result[name] = "not installed"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name)
    return result


def device_facts(flops: float | None, bandwidth: float | None) -> Row:
    """Return what the tables say of the device."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "backend": jax.default_backend(),
        "count": jax.local_device_count(),
        "memory_limit": limit,
        "flops": flops,
        "bandwidth": bandwidth,
    }


def work(pipe: Connection, part: str, options: argparse.Namespace, seconds: float) -> None:
    """Send the device, then the rows of a part, in a process of its own."""
    chip = local_chip()
    flops = 1e12 * options.tflops if options.tflops else chip and chip.flops
    bandwidth = 1e9 * options.bandwidth if options.bandwidth else chip and chip.bandwidth
    pipe.send(device_facts(flops, bandwidth))
    if jax.default_backend() == "cpu" and not options.tiny:
        return  # the command refuses
    sizes = TINY if options.tiny else FULL
    setting = Setting(sizes, options.k, flops, bandwidth, time.monotonic() + seconds, options.tiny)
    try:
        for row in PARTS[part](setting):
            pipe.send(row)
    except Exception as error:  # the other parts go on
        pipe.send({"case": "the part", "who": "kd_jax", "status": describe(error)})
    pipe.close()


def run_part(part: str, options: argparse.Namespace, seconds: float, limit: float) -> tuple[Row, list[Row]]:
    """Return (the device, the rows of a part) from its process, which is ended after `limit` seconds."""
    spawn, end = multiprocessing.get_context("spawn"), time.monotonic() + limit
    reader, writer = spawn.Pipe(duplex=False)
    process = spawn.Process(target=work, args=(writer, part, options, seconds))
    process.start()
    writer.close()
    messages: list[Row] = []
    status = ""  # of the row that says why there are no more
    try:
        while True:
            if not reader.poll(max(0.0, end - time.monotonic())):
                process.kill()
                status = f"skipped: ended after {limit:.0f} s"
                break
            messages.append(reader.recv())
    except EOFError:
        process.join()
        status = f"failed: the process ended with status {process.exitcode}" if process.exitcode else ""
    process.join()
    rows = messages[1:] + ([{"case": "the rest", "who": "kd_jax", "status": status}] if status else [])
    return (messages or [{}])[0], rows


def is_failure(row: Row) -> bool:
    """Return whether a row makes the run fail: kd_jax's, and neither skipped nor out of memory."""
    return row["who"].startswith("kd_jax") and row["status"].startswith("failed")


def set_environment(tiny: bool) -> None:
    """Let JAX start the CPU beside the accelerator, and leave memory to PyTorch; compile fast if `tiny`."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.6")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if tiny:
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        )


def main() -> None:
    """Print the tables, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="parts to run")
    parser.add_argument(
        "--seconds", type=float, default=75.0, help="time of a part, on average; the whole takes at most 6 times it"
    )
    parser.add_argument("--k", type=int, default=32, help="tokens of the teacher's top-k")
    parser.add_argument("--tflops", type=float, help="peak TFLOP/s of dense bfloat16 products, of an unknown device")
    parser.add_argument("--bandwidth", type=float, help="peak GB/s of the memory, of an unknown device")
    parser.add_argument("--tiny", action="store_true", help="small shapes that check this script, on a CPU too")
    options = parser.parse_args()
    set_environment(options.tiny)
    begin = time.monotonic()
    end = begin + 6 * max(options.seconds, 10)
    result: Row = {"versions": versions(), "options": vars(options) | {"json": str(options.json)}, "parts": {}}
    for part in options.parts:
        start = time.monotonic()
        left = end - start
        share_of_part = SHARES[part] * options.seconds
        device, rows = run_part(part, options, min(share_of_part, left), min(share_of_part + 45, left))
        if device.get("platform") == "cpu" and not options.tiny:
            sys.exit("error: expected a GPU or a TPU, got a CPU. Add --tiny to check the script itself.")
        if "device" not in result:
            result["device"] = device
            print(describe_machine(device, result["versions"]))
        rows.sort(key=lambda row: row.get("length", float("inf")) if part == "attention" else 0)
        seconds = time.monotonic() - start
        result["parts"][part] = {"seconds": seconds, "rows": rows}
        print(f"\n## {part}, {seconds:.0f} s\n\n{table(part, rows)}", flush=True)
        save(options.json, result, begin)
    all_rows = [row for part in result["parts"].values() for row in part["rows"]]
    failures = [row for row in all_rows if is_failure(row)]
    passes, skips = (sum(row["status"].startswith(word) for row in all_rows) for word in ("passed", "skipped"))
    print(f"\n{passes} checks passed, {len(failures)} cases of kd_jax failed, {skips} cases were skipped.")
    where = f"{options.json}, " if options.json else ""
    print(f"{where}{time.monotonic() - begin:.0f} s")
    sys.exit(1 if failures else 0)


def describe_machine(device: Row, versions: Mapping[str, str]) -> str:
    """Return the lines about the device and the libraries."""
    rates = "peak rates unknown, so no shares; set --tflops and --bandwidth"
    if device.get("flops") and device.get("bandwidth"):
        rates = f"{device['flops'] / 1e12:,.0f} TFLOP/s, {device['bandwidth'] / 1e9:,.0f} GB/s"
    limit = f", {device['memory_limit'] / 2**30:.0f} GiB for JAX" if device.get("memory_limit") else ""
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{device.get('kind', 'no device')}, {device.get('count', 0)} of it{limit}; {rates}\n{names}"


def save(path: Path | None, result: Row, begin: float) -> None:
    """Write the rows so far."""
    if path is not None:
        path.write_text(json.dumps(result | {"seconds": time.monotonic() - begin}, indent=2) + "\n")


if __name__ == "__main__":
    main()
