"""Qwen3-VL's `config.json` as frozen dataclasses, read from either of its dialects.

The hub's files keep `rope_theta` and `rope_scaling` apart; transformers 5 saves one `rope_parameters`.
Source: transformers 5.23, `configuration_qwen3_vl.py`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from models.errors import CheckpointError


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes are in channels, `patch_size` in pixels, `temporal_patch_size` in frames."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    hidden_act: str = "gelu_pytorch_tanh"
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one token."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `mrope_section` splits the `head_dim // 2` rotary frequencies over (T, H, W)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    hidden_act: str = "silu"


@dataclass(frozen=True)
class Qwen3VLConfig:
    """A dense Qwen3-VL model; hashable, so that it can be a static argument of `jax.jit`."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Qwen3VLConfig":
        """Read the content of a `config.json`.

        Raises:
            CheckpointError: a key is missing, of the wrong kind, or asks for what this family does not have.
        """
        text, vision = _section(config, "text_config"), _section(config, "vision_config")
        rope = {"rope_theta": text.get("rope_theta"), **_rope(text, "rope_scaling"), **_rope(text)}
        kind = rope.get("rope_type", rope.get("type", "default"))
        _require(kind in ("default", "mrope"), f"rope_type {kind!r}", "'default'")
        _require(rope["rope_theta"] is not None, "no rope_theta", "one in rope_parameters or text_config")
        result = cls(
            text=_build(
                TextConfig,
                text,
                rope_theta=rope["rope_theta"],
                mrope_section=_sizes(rope.get("mrope_section", (24, 20, 20)), "mrope_section"),
                num_key_value_heads=text.get("num_key_value_heads") or text.get("num_attention_heads"),
            ),
            vision=_build(
                VisionConfig,
                vision,
                rope_theta=_rope(vision).get("rope_theta", 10000.0),
                deepstack_visual_indexes=_sizes(
                    vision.get("deepstack_visual_indexes", ()), "deepstack_visual_indexes"
                ),
            ),
            image_token_id=config.get("image_token_id", 151655),
            video_token_id=config.get("video_token_id", 151656),
            vision_start_token_id=config.get("vision_start_token_id", 151652),
            vision_end_token_id=config.get("vision_end_token_id", 151653),
            tie_word_embeddings=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        )
        _check(result)
        return result


def _rope(section: Mapping[str, Any], key: str = "rope_parameters") -> Mapping[str, Any]:
    rope = section.get(key) or {}
    _require(isinstance(rope, Mapping), f"{key} {rope!r}", "an object")
    return rope


def _sizes(value: Any, name: str) -> tuple[int, ...]:
    whole = isinstance(value, list | tuple) and all(type(v) is int and v >= 0 for v in value)
    _require(whole, f"{name} {value!r}", "a list of whole numbers")
    return tuple(value)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    _require(isinstance(section, Mapping), f"no {name}", "an object")
    return section  # pyright: ignore[reportReturnType]


def _build(kind: type, section: Mapping[str, Any], **given: Any) -> Any:
    known = {f.name for f in fields(kind)}
    values = {k: v for k, v in section.items() if k in known} | given
    required = {f.name for f in fields(kind) if f.default is MISSING}
    missing = sorted(required - values.keys())
    _require(not missing, f"{kind.__name__} without {', '.join(missing)}", "all of its sizes")
    made = kind(**values)
    _check_kinds(made)
    return made


def _check_kinds(made: Any) -> None:
    """Sizes are whole numbers from 1 up, other numbers above 0."""
    kinds = {int: "a whole number from 1 up", float: "a number above 0", bool: "true or false"}
    for name, kind in get_type_hints(type(made)).items():
        value = getattr(made, name)
        if kind not in kinds:
            continue
        fits = type(value) is kind or (kind is float and type(value) is int)
        _require(fits and (kind is bool or value > 0), f"{name} {value!r}", kinds[kind])


def _check(config: Qwen3VLConfig) -> None:
    text, vision = config.text, config.vision
    image = config.image_token_id
    _require(
        type(image) is int and 0 <= image < text.vocab_size,
        f"image_token_id {image!r}",
        f"a token id, 0 to {text.vocab_size - 1}",
    )
    _require(
        type(config.tie_word_embeddings) is bool,
        f"tie_word_embeddings {config.tie_word_embeddings!r}",
        "true or false",
    )
    _require(
        vision.hidden_size % (4 * vision.num_heads) == 0,
        f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads",
        "a multiple of 4 per head, for two rotary axes",
    )
    _require(
        vision.hidden_act == "gelu_pytorch_tanh",
        f"vision hidden_act {vision.hidden_act!r}",
        "'gelu_pytorch_tanh'",
    )
    _require(text.hidden_act == "silu", f"hidden_act {text.hidden_act!r}", "'silu'")
    _require(
        text.num_attention_heads % text.num_key_value_heads == 0,
        f"{text.num_attention_heads} query heads over {text.num_key_value_heads} key heads",
        "a whole number of query heads per key head",
    )
    _require(
        len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
        f"mrope_section {list(text.mrope_section)}",
        f"three numbers that add up to head_dim / 2 = {text.head_dim // 2}",
    )
    _require(
        vision.out_hidden_size == text.hidden_size,
        f"vision out_hidden_size {vision.out_hidden_size}",
        f"the decoder's hidden_size {text.hidden_size}",
    )
    side = int(vision.num_position_embeddings**0.5)
    _require(
        side * side == vision.num_position_embeddings,
        f"num_position_embeddings {vision.num_position_embeddings}",
        "a square number",
    )


def _require(ok: bool, got: str, allowed: str) -> None:
    if not ok:
        raise CheckpointError(f"config.json: {got}; allowed: {allowed}")
