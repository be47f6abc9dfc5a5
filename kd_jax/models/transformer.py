"""Hyper-parameters of both families of Transformers."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from kd_jax.batches.layouts import Layout
from kd_jax.config import MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, check_count, is_count, is_number
from kd_jax.errors import KdError
from kd_jax.models.attend import Attention
from kd_jax.models.base import Family, Model
from kd_jax.models.rope import Dynamic, RopeScaling, Yarn

Norm = Literal["rms", "layer"]
NormPosition = Literal["before", "after", "both", "output"]
Positions = Literal["sinusoidal", "timing", "learned", "rotary", "relative"]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh", "swiglu", "geglu"]
Biases = Literal["none", "qkv", "all"]
Compute = Literal["float32", "bfloat16"]
Remat = Literal["none", "layer", "dots"]

CHOICES = {
    "norm": Norm,
    "norm_position": NormPosition,
    "positions": Positions,
    "activation": Activation,
    "biases": Biases,
    "compute": Compute,
    "remat": Remat,
    "attention": Attention,
}

# Fields that do not affect which parameters the network has.
COMPUTE_FIELDS = ("dropout", "compute", "remat", "scan_layers", "attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """Hyper-parameters of the layers. Teacher and student are of one family, over one vocabulary.

    Attributes:
      d_model: width of the hidden states.
      heads: number of query heads.
      kv_heads: number of key and value heads, a divisor of heads (arXiv 2305.13245); 0 for heads.
      head_dim: width of a head; 0 for d_model / heads.
      d_ff: width of the feed-forward layers.
      dropout: rate after the embeddings and each sub-layer, in training only.
      norm: "rms" (arXiv 1910.07467) or "layer" (arXiv 1607.06450).
      norm_position: "before" the sub-layer, x + f(norm(x)), with one norm after the last layer; "after" the sum,
        norm(x + f(x)) (arXiv 1706.03762); "both", x + norm(f(norm(x))), with one norm after the last layer (Gemma 2);
        "output", x + norm(f(x)), with one norm after the last layer (OLMo 2, arXiv 2501.00656).
      norm_epsilon: added to the variance.
      positions: "sinusoidal" (arXiv 1706.03762), "timing" (tensor2tensor's sinusoids, whose last rate is exactly
        1 / 10,000), "learned", "rotary" (arXiv 2104.09864), or "relative" in buckets (T5, arXiv 1910.10683).
      first_position: position of the first token; sinusoidal and timing positions only.
      rope_theta: base of the rotary angles.
      rope_scaling: scaling of the rotary angles for long texts; None for none.
      rotary_fraction: share of a head's channels that are rotated, the first ones (Phi-4-mini); rounded down.
      unrotated: indices of decoder layers without rotary positions (SmolLM3, arXiv 2501.18795).
      local: indices of decoder layers whose rotary angles have the base `local_rope_theta`, unscaled, and whose tokens
        see a window (Gemma 3).
      local_rope_theta: base of the rotary angles of local layers.
      window: tokens that a token of a local layer sees, itself included; 0 for all.
      context: maximum number of tokens of a text; 0 for no bound. Number of rows of learned positions.
      activation: "relu", "silu", "gelu", "gelu_tanh" (its approximation), or gated (arXiv 2002.05202): "swiglu",
        "geglu" (with the approximation).
      biases: projections with a bias: "all", "qkv" (queries, keys and values), or "none".
      qk_norm: whether each head's queries and keys are normalised (RMSNorm), before any rotation.
      qk_norm_joint: whether qk_norm normalises the queries of all heads together, and the keys (OLMo 2).
      attention_scale: factor on q k'; 0 for head_dim ** -0.5.
      attention_soft_cap: bound of q k', by tanh (arXiv 2408.00118); 0 for none.
      embedding_scale: whether embeddings are multiplied by d_model ** 0.5.
      embedding_norm: whether the sum of embeddings and positions is normalised.
      head_scale: factor on the last hidden states (T5's tied models: d_model ** -0.5).
      tied: whether the output matrix is the transposed embedding.
      head_bias: whether the logits have a bias.
      soft_cap: bound of the logits, by tanh; 0 for none.
      vocab_rows: rows of the embedding; 0 for the tokeniser's number of tokens. Further rows get no probability.
      vocab_multiple: the number of rows is rounded up to a multiple of this.
      compute: dtype of matrix products and of activations between layers, "float32" or "bfloat16". Norms, softmax,
        logits, parameters and gradients are float32 either way, unless the parameters are stored in bfloat16.
      remat: what the backward pass computes again (arXiv 1604.06174): nothing ("none"), all but the products with
        matrices ("dots"), or the whole layer ("layer").
      attention: "plain" for XLA's own operations, with scores [T, S] in memory; "flash" for memory linear in the number
        of tokens, by the kernels of TPUs and GPUs where they take the shapes; "auto" for flash on long rows
        (kd_jax.models.attend).
      scan_layers: whether each stack is compiled as one layer in a scan; for deep networks, slower on CPU.
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
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    unrotated: tuple[int, ...] = ()
    local: tuple[int, ...] = ()
    local_rope_theta: float = 10_000.0
    window: int = 0
    context: int = 0
    activation: Activation
    biases: Biases = "none"
    qk_norm: bool = False
    qk_norm_joint: bool = False
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
    attention: Attention = "auto"
    scan_layers: bool = False

    depth_fields: ClassVar[tuple[str, ...]]  # fields with the numbers of layers

    @property
    def family(self) -> Family:
        """The family of networks."""
        raise NotImplementedError

    @property
    def layout(self) -> type[Layout]:
        """The class of the layout."""
        raise NotImplementedError

    @property
    def key_heads(self) -> int:
        """The number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """The width of a head."""
        return self.head_dim or self.d_model // self.heads

    @property
    def rotary_width(self) -> int:
        """The number of rotated channels of a head."""
        return int(self.head_width * self.rotary_fraction)

    def embedding_rows(self, vocab_size: int) -> int:
        """Return the number of rows of the embedding for a tokeniser of `vocab_size` tokens."""
        if self.vocab_rows and self.vocab_rows < vocab_size:
            raise KdError(
                f"model.vocab_rows: expected at least {vocab_size}, the tokeniser's number of tokens, "
                f"got {self.vocab_rows}."
            )
        rows = self.vocab_rows or vocab_size
        return -(-rows // self.vocab_multiple) * self.vocab_multiple

    def stacks(self) -> Mapping[str, int]:
        """Return the number of layers of each stack."""
        raise NotImplementedError

    def build(self, vocab_size: int) -> Model:
        """Return the network for a vocabulary of `vocab_size` tokens."""
        raise NotImplementedError

    def widths(self) -> dict[str, int]:
        """Return the widths of a layer's taps: "hidden", and "q", "k", "v" over all heads."""
        keys = self.key_heads * self.head_width
        return {"hidden": self.d_model, "q": self.heads * self.head_width, "k": keys, "v": keys}

    def check(self) -> None:
        """Check each field and how the fields fit together."""
        widths = ("d_model", "heads", "d_ff", "kv_heads", "head_dim")
        bounds = dict.fromkeys(self.depth_fields, MAX_LAYERS) | dict.fromkeys(widths, MAX_WIDTH)
        bounds |= dict.fromkeys(("context", "window", "first_position", "vocab_rows", "vocab_multiple"), MAX_VOCAB)
        for field, high in bounds.items():
            zero_is_default = field in ("kv_heads", "head_dim", "context", "window", "first_position", "vocab_rows")
            check_count(f"model.{field}", getattr(self, field), 0 if zero_is_default else 1, high)
        for field, choices in CHOICES.items():
            if getattr(self, field) not in get_args(choices):
                expected = ", ".join(map(repr, get_args(choices)))
                raise KdError(f"model.{field}: expected one of {expected}, got {getattr(self, field)!r}.")
        flags = ("qk_norm", "qk_norm_joint", "embedding_scale", "embedding_norm", "tied", "head_bias", "scan_layers")
        for field in flags:
            if type(getattr(self, field)) is not bool:
                raise KdError(f"model.{field}: expected True or False, got {getattr(self, field)!r}.")
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise KdError(f"model.dropout: expected a rate in [0, 1), got {self.dropout!r}.")
        if not (is_number(self.rotary_fraction) and 0 < self.rotary_fraction <= 1):
            raise KdError(f"model.rotary_fraction: expected a share in (0, 1], got {self.rotary_fraction!r}.")
        for field in ("norm_epsilon", "rope_theta", "local_rope_theta", "head_scale"):
            if not (is_number(getattr(self, field)) and getattr(self, field) > 0):
                raise KdError(f"model.{field}: expected a positive number, got {getattr(self, field)!r}.")
        zero_means = {"attention_scale": "1 / sqrt(head_dim)", "attention_soft_cap": "no cap", "soft_cap": "no cap"}
        for field, meaning in zero_means.items():
            if not (is_number(getattr(self, field)) and getattr(self, field) >= 0):
                raise KdError(
                    f"model.{field}: expected a positive number, or 0 for {meaning}, got {getattr(self, field)!r}."
                )
        self._check_together()

    def _check_together(self) -> None:
        """Check how the fields fit together; each alone is valid."""
        if not self.head_dim and self.d_model % self.heads:
            raise KdError(
                f"model.heads: expected a divisor of d_model = {self.d_model}, got {self.heads}. "
                "Change it, or set model.head_dim."
            )
        if self.heads % self.key_heads:
            raise KdError(f"model.kv_heads: expected a divisor of heads = {self.heads}, or 0, got {self.kv_heads}.")
        if self.positions == "rotary" and self.head_width % 2:
            raise KdError(
                f"model.head_dim: expected an even width for rotary positions, got {self.head_width}. "
                "Change head_dim, heads or d_model."
            )
        if self.positions == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            raise KdError(
                f"model.rotary_fraction: expected an even number of rotated channels of {self.head_width}, got "
                f"{self.rotary_width} by {self.rotary_fraction}."
            )
        if self.qk_norm_joint and (not self.qk_norm or "encoder" in self.stacks()):
            raise KdError(
                "model.qk_norm_joint: expected False, unless qk_norm is True and the model is decoder-only, got True."
            )
        if self.positions == "learned" and not self.context:
            raise KdError(
                "model.context: expected a positive integer for learned positions, got 0. "
                "Set the maximum number of tokens of a text, such as 512."
            )
        if self.rope_scaling:
            self.rope_scaling.check()
        if isinstance(self.rope_scaling, Dynamic) and not self.context:
            raise KdError(
                "model.context: expected a positive integer, since rope_scaling is Dynamic, got 0. "
                "Set the maximum number of tokens of a text."
            )
        if isinstance(self.rope_scaling, Yarn) and self.rope_theta <= 1:
            raise KdError(f"model.rope_theta: expected more than 1, since rope_scaling is Yarn, got {self.rope_theta}.")
        if self.window and not self.local:
            raise KdError(
                f"model.window: expected 0, since no layer is in model.local, got {self.window}. "
                "Name the layers that see a window in model.local."
            )
        for field in ("local", "unrotated"):
            layers = getattr(self, field)
            if not all(is_count(layer, 0) and layer < self.stacks()["decoder"] for layer in layers):
                raise KdError(
                    f"model.{field}: expected indices of decoder layers, from 0 to {self.stacks()['decoder'] - 1}, "
                    f"got {layers}."
                )
        if self.unrotated and self.positions != "rotary":
            raise KdError(f"model.unrotated: expected (), since positions are {self.positions}, got {self.unrotated}.")
