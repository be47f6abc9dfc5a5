"""Run cases of PyTorch, Liger and transformers on a GPU, in a process that accelerator.py starts.

Each line of standard input is a request, and each line of output its answer, both JSON objects:

    {"do": "prepare", "key": "a", "case": "sdpa", "sizes": {...}}  -> {"first": seconds, "memory": bytes or null}
    {"do": "run", "key": "a", "calls": 3}                          -> {"seconds": of the three calls}
    {"do": "drop"}                                                 -> {}

A request that fails has the answer {"error": text}. With the argument --cpu the cases run on the CPU, to test them.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Sizes = dict[str, Any]
Call = Callable[[], Any]


class NotHereError(Exception):
    """A case that cannot run on this machine; the message says why."""


def head_arrays(torch: Any, device: str, sizes: Sizes) -> tuple[Any, Any, Any]:
    """Return hidden states [N, D], a matrix [V, D], both bfloat16 with gradients, and targets [N]."""
    n, d, v = (sizes[name] for name in ("tokens", "width", "vocab_size"))
    hidden_ND = torch.randn(n, d, dtype=torch.bfloat16, device=device).requires_grad_()
    kernel_VD = (torch.randn(v, d, device=device) * d**-0.5).to(torch.bfloat16).requires_grad_()
    return hidden_ND, kernel_VD, torch.randint(0, v, (n,), device=device)


def gradients(loss: Callable[[], Any], *leaves: Any) -> Call:
    """Return a call that computes a loss and the gradients of the leaves."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return call


def linear_ce(torch: Any, device: str, sizes: Sizes) -> Call:
    """Cross-entropy of all logits, as PyTorch computes it."""
    hidden_ND, kernel_VD, targets_N = head_arrays(torch, device, sizes)
    functions = torch.nn.functional
    loss = lambda: functions.cross_entropy(functions.linear(hidden_ND, kernel_VD).float(), targets_N)  # noqa: E731
    return gradients(loss, hidden_ND, kernel_VD)


def liger(device: str) -> Any:
    """Return Liger's module, if it is installed and there is a GPU."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotHereError("not installed")
    if device == "cpu":
        raise NotHereError("not on this platform")
    import liger_kernel.transformers  # pyright: ignore[reportMissingImports]

    return liger_kernel.transformers


def liger_ce(torch: Any, device: str, sizes: Sizes) -> Call:
    """Liger's fused cross-entropy."""
    function = liger(device).LigerFusedLinearCrossEntropyLoss()
    hidden_ND, kernel_VD, targets_N = head_arrays(torch, device, sizes)
    return gradients(lambda: function(kernel_VD, hidden_ND, targets_N), hidden_ND, kernel_VD)


def liger_jsd(torch: Any, device: str, sizes: Sizes) -> Call:
    """Liger's fused Jensen-Shannon divergence to a teacher of the same width."""
    function = liger(device).LigerFusedLinearJSD()
    hidden_ND, kernel_VD, _ = head_arrays(torch, device, sizes)
    with torch.no_grad():
        teacher_ND, teacher_VD, _ = (x.detach() for x in head_arrays(torch, device, sizes))
    return gradients(lambda: function(hidden_ND, kernel_VD, teacher_ND, teacher_VD, None), hidden_ND, kernel_VD)


def sdpa(torch: Any, device: str, sizes: Sizes) -> Call:
    """Causal scaled_dot_product_attention with grouped keys, forward and backward."""
    batch, length, width = (sizes[name] for name in ("batch", "length", "width"))
    q, k, v = (
        torch.randn(batch, heads, length, width, dtype=torch.bfloat16, device=device).requires_grad_()
        for heads in (sizes["heads"], sizes["key_heads"], sizes["key_heads"])
    )
    weights = torch.randn_like(q)

    def call() -> None:
        q.grad = k.grad = v.grad = None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.backward(weights)

    return call


def generate(torch: Any, device: str, sizes: Sizes, cache: str) -> Call:
    """Greedy decoding of a random Llama with transformers."""
    if importlib.util.find_spec("transformers") is None:
        raise NotHereError("not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    llama: Any = LlamaForCausalLM(LlamaConfig(**sizes["model"]))
    model = llama.to(device, torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # no text ends early
    ids_BT = torch.randint(3, sizes["model"]["vocab_size"], (sizes["batch"], sizes["prompt"]), device=device)
    options: dict[str, Any] = {"max_new_tokens": sizes["length"], "do_sample": False, "pad_token_id": 0}
    options |= {"cache_implementation": "static"} if cache == "static" else {}

    def call() -> None:
        ids_BX = model.generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), **options)
        assert ids_BX.shape[1] == sizes["prompt"] + sizes["length"]

    return call


CASES: dict[str, Callable[[Any, str, Sizes], Call]] = {
    "linear_ce": linear_ce,
    "liger_ce": liger_ce,
    "liger_jsd": liger_jsd,
    "sdpa": sdpa,
    "generate": lambda *arguments: generate(*arguments, cache="dynamic"),
    "generate_static": lambda *arguments: generate(*arguments, cache="static"),
}


class Side:
    """The prepared cases by key."""

    def __init__(self, device: str):
        """Choose the device, "cuda" or "cpu"."""
        import torch

        torch.manual_seed(0)
        self.torch, self.device = torch, device
        self.calls: dict[str, Call] = {}

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def prepare(self, key: str, case: str, sizes: Sizes) -> dict[str, Any]:
        """Build a case and call it twice: compiled ones may need both, and "first" is both together."""
        if self.device == "cuda" and not self.torch.cuda.is_available():
            raise NotHereError("not on this platform")
        call, cuda, memory, before = CASES[case](self.torch, self.device, sizes), self.torch.cuda, None, 0
        if self.device == "cuda":
            cuda.reset_peak_memory_stats()
            before = cuda.memory_allocated()
        start = time.perf_counter()
        for _ in range(2):
            call()
        self.wait()
        first = time.perf_counter() - start
        if self.device == "cuda":
            memory = cuda.max_memory_allocated() - before
        self.calls[key] = call
        return {"first": first, "memory": memory}

    def run(self, key: str, calls: int) -> dict[str, Any]:
        """Call a case several times."""
        start = time.perf_counter()
        for _ in range(calls):
            self.calls[key]()
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def drop(self) -> dict[str, Any]:
        """Free all cases."""
        self.calls.clear()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
        return {}


def main() -> None:
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # keeps the libraries' own lines out of the answers
    side: Side | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            side = side or Side("cpu" if "--cpu" in sys.argv else "cuda")
            answer = getattr(side, request.pop("do"))(**request)
        except NotHereError as error:
            answer = {"error": str(error), "not_here": True}
        except Exception as error:  # the process goes on with the next case
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
