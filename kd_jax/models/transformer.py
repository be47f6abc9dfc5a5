"""Hyper-parameters that both families of Transformers share."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from kd_jax.config import is_count, is_number
from kd_jax.errors import KdError
from kd_jax.models.rope import Linear, Llama3

Norm = Literal["rms", "layer"]
NormPosition = Literal["before", "after", "both"]
Positions = Literal["sinusoidal", "timing", "learned", "rotary", "relative"]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh", "swiglu", "geglu"]
Biases = Literal["none", "qkv", "all"]
Compute = Literal["float32", "bfloat16"]
Remat = Literal["none", "layer", "dots"]

# How a network is computed; what its parameters are does not depend on it.
COMPUTE_FIELDS = ("dropout", "compute", "remat", "scan_layers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """What the layers are made of. Teacher and student are two of one family over one vocabulary.

    Attributes:
      d_model, d_ff: width, width of the feed-forward layers.
      heads, kv_heads: of the queries; of keys and values (arXiv 2305.13245), a divisor of heads. 0: as many.
      head_dim: width of a head; 0 for d_model / heads.
      dropout: rate after the embeddings and each sub-layer, in training only.
      norm: "rms" (arXiv 1910.07467) or "layer" (arXiv 1607.06450).
      norm_position: "before" the sub-layer, x + f(norm(x)), and once behind the last layer; "after" the sum,
        norm(x + f(x)) (arXiv 1706.03762); "both", x + norm(f(norm(x))), and once behind the last (Gemma 2).
      norm_epsilon: added to the variance.
      positions: "sinusoidal" (arXiv 1706.03762), "timing" (tensor2tensor's sinusoids, whose last rate is exactly
        1 / 10,000), "learned", "rotary" (arXiv 2104.09864), or "relative" in buckets (T5, arXiv 1910.10683).
      first_position: number of the first token, for sinusoids alone.
      rope_theta, rope_scaling: base of the rotary angles; how they are slowed down for long texts, if they are.
      local, local_rope_theta: decoder layers whose angles have a base of their own, unscaled (Gemma 3).
      context: the most tokens of a text; 0 for no bound. Learned positions have as many rows.
      activation: "relu", "silu", "gelu", "gelu_tanh" (its approximation), or gated (arXiv 2002.05202): "swiglu",
        "geglu" (with the approximation).
      biases: of "all" projections, of those to queries, keys and values alone, or of "none".
      qk_norm: RMSNorm of each head's queries and keys, before any rotary_embedding.
      attention_scale: factor on q k'; 0 for head_dim ** -0.5.
      attention_soft_cap, soft_cap: bounds of q k' and of the logits, by tanh (arXiv 2408.00118); 0 for none.
      embedding_scale: whether embeddings are multiplied by d_model ** 0.5.
      embedding_norm: whether a norm follows the embeddings and their positions.
      head_scale: factor on the last hidden states (T5's tied models: d_model ** -0.5).
      tied: whether the output matrix is the embedding, transposed.
      head_bias: whether the logits have a bias.
      vocab_rows: rows of the embedding; 0 for as many as there are tokens. Rows beyond them get no probability.
      vocab_multiple: the embedding's rows are padded to a multiple of it.
      compute: what products of matrices and what lies between the layers are in, "float32" or "bfloat16". Parameters
        and their gradients are float32 either way, as are norms, the softmax and the logits; parameters that are kept
        in bfloat16 are computed with in it.
      remat: what of a layer is kept for the backward pass: all of it ("none"), the products with its matrices
        ("dots"), or what it reads alone ("layer"); the rest is computed again (arXiv 1604.06174).
      scan_layers: whether a stack is compiled as one layer that is scanned over: for deep networks; slower on CPU.
    """

    d_model: int = 128
    heads: int = 4
    kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 512
    dropout: float = 0.1
    norm: Norm
    norm_position: NormPosition = "before"
    norm_epsilon: float
    positions: Positions
    first_position: int = 0
    rope_theta: float = 10_000.0
    rope_scaling: Linear | Llama3 | None = None
    local: tuple[int, ...] = ()
    local_rope_theta: float = 10_000.0
    context: int = 0
    activation: Activation
    biases: Biases = "none"
    qk_norm: bool = False
    attention_scale: float = 0.0
    attention_soft_cap: float = 0.0
    embedding_scale: bool
    embedding_norm: bool = False
    head_scale: float = 1.0
    tied: bool = True
    head_bias: bool = False
    soft_cap: float = 0.0
    vocab_rows: int = 0
    vocab_multiple: int = 1
    compute: Compute = "float32"
    remat: Remat = "none"
    scan_layers: bool = False

    depth_fields: ClassVar[tuple[str, ...]]  # fields that say how many layers a stack has

    @property
    def key_heads(self) -> int:
        """Heads of the keys and of the values."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Of one head."""
        return self.head_dim or self.d_model // self.heads

    def embedding_rows(self, vocab_size: int) -> int:
        """Rows of the embedding for a tokeniser of `vocab_size` tokens; raises KdError if they are fewer."""
        if self.vocab_rows and self.vocab_rows < vocab_size:
            raise KdError(f"model.vocab_rows: {self.vocab_rows}, the tokeniser has {vocab_size} tokens; wanted as many")
        rows = self.vocab_rows or vocab_size
        return -(-rows // self.vocab_multiple) * self.vocab_multiple

    def stacks(self) -> Mapping[str, int]:
        """Stack -> number of layers."""
        raise NotImplementedError

    def widths(self) -> dict[str, int]:
        """Width of what the layers hold: "hidden", and "q", "k" and "v" of all heads together.

        Examples:
          >>> from kd_jax.models.decoder_only import DecoderOnly
          >>> DecoderOnly(2, d_model=8, heads=4, kv_heads=2, head_dim=6).widths()
          {'hidden': 8, 'q': 24, 'k': 12, 'v': 12}
        """
        keys = self.key_heads * self.head_width
        return {"hidden": self.d_model, "q": self.heads * self.head_width, "k": keys, "v": keys}

    def check(self) -> None:
        """Raises KdError naming the field that is out of range, or does not fit the others."""
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        """Each field by itself."""
        least = dict.fromkeys([*self.depth_fields, "d_model", "heads", "d_ff", "vocab_multiple"], 1)
        for field, low in (
            least | {"kv_heads": 0, "head_dim": 0, "context": 0, "first_position": 0, "vocab_rows": 0}
        ).items():
            if not is_count(vars(self)[field], low):
                raise KdError(f"model.{field}: {vars(self)[field]}; wanted a whole number of at least {low}")
        choices = {"norm": Norm, "norm_position": NormPosition, "positions": Positions, "activation": Activation}
        choices |= {"biases": Biases, "compute": Compute, "remat": Remat}
        for field, names in choices.items():
            if vars(self)[field] not in get_args(names):
                raise KdError(f"model.{field}: {vars(self)[field]!r}; wanted {' or '.join(get_args(names))}")
        for field in ("qk_norm", "embedding_scale", "embedding_norm", "tied", "head_bias", "scan_layers"):
            if type(vars(self)[field]) is not bool:
                raise KdError(f"model.{field}: {vars(self)[field]!r}; wanted True or False")
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise KdError(f"model.dropout: {self.dropout}; wanted a rate in [0, 1)")
        for field in ("norm_epsilon", "rope_theta", "local_rope_theta", "head_scale"):
            if not (is_number(vars(self)[field]) and vars(self)[field] > 0):
                raise KdError(f"model.{field}: {vars(self)[field]}; wanted a positive number")
        absent = {"attention_scale": "1 / sqrt(head_dim)", "attention_soft_cap": "none", "soft_cap": "none"}
        for field, meaning in absent.items():
            if not (is_number(vars(self)[field]) and vars(self)[field] >= 0):
                raise KdError(f"model.{field}: {vars(self)[field]}; wanted 0 ({meaning}) or a positive number")

    def _check_together(self) -> None:
        """What one field asks of another."""
        if not self.head_dim and self.d_model % self.heads:
            raise KdError(f"model.heads: {self.heads}; wanted a divisor of d_model = {self.d_model}, or a head_dim")
        if self.heads % self.key_heads:
            raise KdError(f"model.kv_heads: {self.kv_heads}; wanted a divisor of heads = {self.heads}, or 0")
        if self.positions == "rotary" and self.head_width % 2:
            raise KdError(f"model.head_dim: {self.head_width}; rotary positions turn pairs, wanted an even width")
        if self.positions == "learned" and not self.context:
            raise KdError("model.context: 0; learned positions need the most tokens of a text, as 512")
        if self.rope_scaling:
            self.rope_scaling.check()
        if not all(is_count(layer, 0) and layer < self.stacks()["decoder"] for layer in self.local):
            raise KdError(f"model.local: {self.local}; wanted some of the decoder's layers, counted from 0")
