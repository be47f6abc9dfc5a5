"""Settings of rotary angles and sliding windows, of decoder-only formats. Checked against transformers 5.24."""

import math
from collections.abc import Callable
from typing import Any

from kd_jax.errors import KdError
from kd_jax.models.huggingface.base import Config, Setting, read_choice, read_count, read_flag, read_number, show
from kd_jax.models.rope import Dynamic, Linear, Llama3, RopeScaling, Yarn
from kd_jax.models.transformer import Transformer

KINDS = FULL, SLIDING = "full_attention", "sliding_attention"  # of layers
ROPE_TYPES = {"default": None, "linear": Linear, "llama3": Llama3, "yarn": Yarn, "dynamic": Dynamic}
DEFAULT_CONTEXT = 2048  # max_position_embeddings of a model of ours without a bound


def read_rope(
    key: str, value: Any, theta: Any, original: Any, types: tuple[str, ...] = tuple(ROPE_TYPES)
) -> tuple[float, RopeScaling | None]:
    """Return (theta, scaling) of the rotary angles under a key; `theta` and `original` are what it may lack."""
    if not isinstance(value, dict):
        raise KdError(f"config.json: {key}: expected an object, got {show(value)}.")
    complete = {"rope_theta": theta, "original_max_position_embeddings": original, **value}
    if nested := [name for name, setting in complete.items() if isinstance(setting, dict)]:
        raise KdError(f"config.json: {key}.{nested[0]}: expected a number or text, got an object.")
    named = {f"{key}.{name}": setting for name, setting in complete.items()}
    name = f"{key}.rope_type" if "rope_type" in value else f"{key}.type"
    kind = read_choice({name: "default", **named}, name, {kind: ROPE_TYPES[kind] for kind in types})
    theta = read_number(named, f"{key}.rope_theta")
    if kind is None:
        return theta, None
    factor = read_number(named, f"{key}.factor")
    if kind is Yarn:
        return theta, _read_yarn(key, named, factor)
    if kind is not Llama3:
        return theta, kind(factor)
    low, high = (read_number(named, f"{key}.{name}") for name in ("low_freq_factor", "high_freq_factor"))
    return theta, Llama3(factor, low, high, read_count(named, f"{key}.original_max_position_embeddings"))


def _read_yarn(key: str, named: Config, factor: float) -> Yarn:
    """Return the scaling of YaRN; `named` has names that begin with the key."""

    def optional(name: str, default: float) -> float:
        """Return a number; absent, null and 0 are the default, as in transformers."""
        return read_number(named, f"{key}.{name}") if named.get(f"{key}.{name}") else default

    magnitude, mscale, mscale_all = 0.0, optional("mscale", 0.0), optional("mscale_all_dim", 0.0)
    if named.get(f"{key}.attention_factor") is not None:
        magnitude = read_number(named, f"{key}.attention_factor")
    elif mscale and mscale_all and factor > 1:
        magnitude = (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all * math.log(factor) + 1)
    return Yarn(
        factor=factor,
        original=read_count(named, f"{key}.original_max_position_embeddings"),
        low=optional("beta_slow", 1.0),
        high=optional("beta_fast", 32.0),
        magnitude=magnitude,
        truncate=read_flag({f"{key}.truncate": True, **named}, f"{key}.truncate"),
    )


def write_rope_scaling(scaling: RopeScaling | None, types: tuple[str, ...] = tuple(ROPE_TYPES)) -> dict[str, Any]:
    """Return the keys of a scaling: the inverse of `read_rope`, without theta."""
    kind = None if scaling is None else type(scaling)
    if kind not in [ROPE_TYPES[name] for name in types]:
        expected = " or ".join(str(ROPE_TYPES[name] and ROPE_TYPES[name].__name__) for name in types)
        raise KdError(f"model.rope_scaling: expected {expected}, got {scaling}.")
    if scaling is None:
        return {"rope_type": "default"}
    if isinstance(scaling, Linear | Dynamic):
        return {"rope_type": "linear" if isinstance(scaling, Linear) else "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original,
        "beta_slow": scaling.low,
        "beta_fast": scaling.high,
        "truncate": scaling.truncate,
        **({"attention_factor": scaling.magnitude} if scaling.magnitude else {}),
    }


def _check_whole(key: str, value: Any) -> None:
    """Raise KdError if only a part of each head is rotated."""
    if isinstance(value, dict) and (factor := value.get("partial_rotary_factor")) not in (None, 1):
        raise KdError(f"config.json: {key}partial_rotary_factor: expected 1, got {show(factor)}.")


def rope(*types: str, partial: bool = False) -> Setting:
    """Return the setting of theta and scaling, which transformers 5 stores together and 4 apart.

    Args:
      types: implemented rope_types; all if empty.
      partial: whether the format may rotate a part of each head.
    """
    types = types or tuple(ROPE_TYPES)

    def read(config: Config) -> dict[str, Any]:
        key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        value = config.get(key) or {}
        theta, original = config.get("rope_theta", 10_000.0), config["max_position_embeddings"]
        theta, scaling = read_rope(key, value, theta, original, types)
        fields = {"rope_theta": theta, "rope_scaling": scaling}
        if not partial:
            _check_whole("", config)
            _check_whole(f"{key}.", value)
            return fields | {"rotary_fraction": 1.0}
        name = "partial_rotary_factor"
        fraction = value.get(name, config.get(name, 1.0))
        full_name = f"{key}.{name}" if name in value else name
        return fields | {"rotary_fraction": read_number({full_name: fraction}, full_name)}

    def write(model: Transformer) -> dict[str, Any]:
        keys = {"rope_theta": model.rope_theta, **write_rope_scaling(model.rope_scaling, types)}
        if partial:
            keys["partial_rotary_factor"] = model.rotary_fraction
        elif model.rotary_fraction != 1:
            raise KdError(f"model.rotary_fraction: expected 1.0, got {model.rotary_fraction}.")
        return {"rope_parameters": keys}

    return Setting(read, write)


def write_context(model: Transformer) -> dict[str, Any]:
    """Return the maximum length of texts."""
    return {"max_position_embeddings": model.context or DEFAULT_CONTEXT}


CONTEXT = Setting(lambda config: {"context": read_count(config, "max_position_embeddings")}, write_context)


def windowed(
    rotary: Setting, read_kinds: Callable[[Config], list[str]], write_window: Callable[[Transformer], dict[str, Any]]
) -> Setting:
    """Return the setting of texts' maximum length, of rotary angles that all layers share, and of sliding windows.

    A window that is at least as long as the context is none. Layers with a window have unscaled angles here, so a
    window beside a scaling is refused.

    Args:
      rotary: setting of the rotary angles.
      read_kinds: config -> kind of each layer.
      write_window: model -> keys of the windows.
    """

    def read(config: Config) -> dict[str, Any]:
        fields, context = rotary.read(config), read_count(config, "max_position_embeddings")
        local = tuple(i for i, kind in enumerate(read_kinds(config)) if kind == SLIDING)
        window = read_count(config, "sliding_window") if local else 0
        if not local or window >= context:
            return fields | {"context": context, "window": 0, "local": ()}
        if fields["rope_scaling"]:
            key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
            raise KdError(
                f"config.json: {key}, sliding_window: expected no scaling of angles beside a window of {window}, "
                f"shorter than max_position_embeddings = {context}, got {fields['rope_scaling']}."
            )
        return fields | {
            "context": context,
            "window": window,
            "local": local,
            "local_rope_theta": fields["rope_theta"],
        }

    def write(model: Transformer) -> dict[str, Any]:
        if model.local and not model.window:
            raise KdError(f"model.local: expected () without a window, got {model.local}.")
        if model.local and model.local_rope_theta != model.rope_theta:
            raise KdError(
                f"model.local_rope_theta: expected rope_theta = {model.rope_theta}, got {model.local_rope_theta}."
            )
        if model.local and model.rope_scaling:
            raise KdError(f"model.rope_scaling: expected None beside a window, got {model.rope_scaling}.")
        return rotary.write(model) | write_context(model) | write_window(model)

    return Setting(read, write)


def read_layer_types(config: Config, default: Callable[[int], str]) -> list[str]:
    """Return the kind of each layer; `default` is that of a layer of a file without layer_types."""
    layers, kinds = read_count(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        return [default(i) for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        raise KdError(
            f"config.json: layer_types: expected {' or '.join(KINDS)} for each of {layers} layers, got {show(kinds)}."
        )
    return kinds


def write_layer_types(model: Transformer) -> dict[str, Any]:
    """Return the kind of each layer."""
    layers = model.stacks()["decoder"]
    return {"layer_types": [SLIDING if i in model.local else FULL for i in range(layers)]}


def uniform_kinds(config: Config) -> list[str]:
    """Return the kinds of Mistral's and Phi-3's layers, which all have a window or none."""
    return [FULL if config["sliding_window"] is None else SLIDING] * read_count(config, "num_hidden_layers")


def write_uniform_window(model: Transformer) -> dict[str, Any]:
    """Return the window of all layers."""
    every = tuple(range(model.stacks()["decoder"]))
    if model.local and set(model.local) != set(every):
        raise KdError(f"model.local: expected () or {every}, got {model.local}.")
    return {"sliding_window": model.window or None}


def qwen_kinds(config: Config) -> list[str]:
    """Return the kinds of Qwen's layers."""
    use, window = read_flag(config, "use_sliding_window"), config["sliding_window"]
    windows = use and window is not None

    def default(layer: int) -> str:
        return SLIDING if windows and layer >= read_count(config, "max_window_layers", 0) else FULL

    kinds = read_layer_types(config, default)
    if SLIDING in kinds and not windows:
        raise KdError(
            f"config.json: use_sliding_window, sliding_window: expected true and an integer, since layer_types has "
            f"{SLIDING}, got {use} and {show(window)}."
        )
    return kinds


def write_qwen_windows(model: Transformer) -> dict[str, Any]:
    """Return the windows of Qwen's layers."""
    if not model.local:
        return {"use_sliding_window": False}
    window = {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": min(model.local)}
    return window | write_layer_types(model)


def gemma2_kinds(config: Config) -> list[str]:
    """Return the kinds of Gemma 2's layers: by default every other layer has a window, the first one too."""
    kinds = read_layer_types(config, lambda i: FULL if i % 2 else SLIDING)
    read_count(config, "sliding_window")  # as in transformers, even if no layer has a window
    return kinds


def write_gemma_windows(model: Transformer) -> dict[str, Any]:
    """Return the windows of Gemma's layers. transformers needs a window; one as wide as the context has no effect."""
    return {"sliding_window": model.window or model.context or DEFAULT_CONTEXT, **write_layer_types(model)}


def read_two_ropes(config: Config) -> dict[str, Any]:
    """Return context, windows and angles of Gemma 3, whose windowed layers have a base of their own and no scaling."""
    ropes: Any = config.get("rope_parameters") or {}
    if not isinstance(ropes, dict) or set(ropes) - set(KINDS):
        raise KdError(f"config.json: rope_parameters: expected {' and '.join(KINDS)}, got {show(ropes)}.")
    ropes = {kind: ropes.get(kind) or {} for kind in KINDS}
    keys = {kind: f"rope_parameters.{kind}" for kind in KINDS}
    if scaling := config.get("rope_scaling"):  # written by transformers 4
        if not isinstance(scaling, dict):
            raise KdError(f"config.json: rope_scaling: expected an object, got {show(scaling)}.")
        ropes[FULL] = {**ropes[FULL], **scaling}
        keys[FULL] = "rope_scaling"
    thetas = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
    original = config["max_position_embeddings"]
    _check_whole("", config)
    for kind in KINDS:
        _check_whole(f"{keys[kind]}.", ropes[kind])
    (theta, scaling), (local_theta, local_scaling) = (
        read_rope(keys[kind], ropes[kind], config.get(*thetas[kind]), original, TWO_ROPES) for kind in KINDS
    )
    if local_scaling is not None:
        raise KdError(
            f"config.json: rope_parameters.sliding_attention: expected rope_type 'default', got {show(ropes[SLIDING])}."
        )

    def default(layer: int) -> str:
        pattern = read_count({"sliding_window_pattern": 6, **config}, "sliding_window_pattern")
        return SLIDING if (layer + 1) % pattern else FULL

    kinds = read_layer_types(config, default)
    context, window = read_count(config, "max_position_embeddings"), read_count(config, "sliding_window")
    local = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    return {
        "context": context,
        "window": window if local and window < context else 0,
        "local": local,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rotary_fraction": 1.0,
        "local_rope_theta": local_theta,
    }


TWO_ROPES = ("default", "linear", "llama3")


def write_two_ropes(model: Transformer) -> dict[str, Any]:
    """Return the inverse of `read_two_ropes`."""
    if model.rotary_fraction != 1:
        raise KdError(f"model.rotary_fraction: expected 1.0, got {model.rotary_fraction}.")
    ropes = {
        FULL: {"rope_theta": model.rope_theta, **write_rope_scaling(model.rope_scaling, TWO_ROPES)},
        SLIDING: {"rope_theta": model.local_rope_theta, "rope_type": "default"},
    }
    return {"rope_parameters": ropes, **write_context(model), **write_gemma_windows(model)}


def _read_rotated(config: Config) -> list[Any]:
    """Return whether each of SmolLM3's layers is rotated."""
    layers, rotated = read_count(config, "num_hidden_layers"), config["no_rope_layers"]
    if rotated is None:
        interval = read_count(config, "no_rope_layer_interval")
        return [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or not all(each in (0, 1) for each in rotated):
        raise KdError(f"config.json: no_rope_layers: expected 0 or 1 for each of {layers} layers, got {show(rotated)}.")
    return rotated[:layers]


def smollm3_kinds(config: Config) -> list[str]:
    """Return the kinds of SmolLM3's layers: by default those without rotation have a window, if there is one."""
    windows = read_flag(config, "use_sliding_window") and config["sliding_window"] is not None
    rotated = _read_rotated(config)
    return read_layer_types(config, lambda i: SLIDING if windows and not rotated[i] else FULL)


def write_smollm3_windows(model: Transformer) -> dict[str, Any]:
    """Return the windows of SmolLM3's layers."""
    window = {"use_sliding_window": bool(model.local), "sliding_window": model.window or None}
    return window | write_layer_types(model)


UNROTATED = Setting(
    lambda config: {"unrotated": tuple(i for i, rotated in enumerate(_read_rotated(config)) if not rotated)},
    lambda model: {"no_rope_layers": [int(i not in model.unrotated) for i in range(model.stacks()["decoder"])]},
)
