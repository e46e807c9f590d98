"""Qwen3-VL's `config.json` as frozen dataclasses, read from either of its dialects.

The hub's files keep `rope_theta` and `rope_scaling` apart; transformers 5 saves one `rope_parameters`.
Source: transformers 5.23, `configuration_qwen3_vl.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.config_parts import DecoderConfig, build, decoder_rope, require, rope, section, sizes, token_id
from models.errors import CheckpointError
from models.images import ImageSettings


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
    def patch_shape(self) -> tuple[int, ...]:
        """A patch as the checkpoint's convolution sees it."""
        return self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size

    @property
    def patch_dim(self) -> int:
        return math.prod(self.patch_shape)

    @property
    def merge_unit(self) -> int:
        """Patches that become one token."""
        return self.spatial_merge_size**2


@dataclass(frozen=True, kw_only=True)
class TextConfig(DecoderConfig):
    """The decoder. `mrope_section` splits the `head_dim // 2` rotary frequencies over (T, H, W)."""

    mrope_section: tuple[int, int, int]
    head_dim: int = 128
    qk_norm: ClassVar[bool] = True


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
    turn_end: ClassVar[str | None] = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Qwen3VLConfig":
        """Read the content of a `config.json`.

        Raises:
            CheckpointError: a key is missing, of the wrong kind, or asks for what this family does not have.
        """
        text, vision = section(config, "text_config"), section(config, "vision_config")
        positions = decoder_rope(text, ("default", "mrope"))
        result = cls(
            text=build(
                TextConfig,
                text,
                rope_theta=positions["rope_theta"],
                mrope_section=sizes(positions.get("mrope_section", (24, 20, 20)), "mrope_section"),
                num_key_value_heads=text.get("num_key_value_heads") or text.get("num_attention_heads"),
            ),
            vision=build(
                VisionConfig,
                vision,
                rope_theta=rope(vision).get("rope_theta", 10000.0),
                deepstack_visual_indexes=sizes(
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

    def image_settings(self, content: Mapping[str, Any], source: str) -> ImageSettings:
        """How the tower wants its pictures: `content` is that of `source`, a preprocessor_config.json.

        Raises CheckpointError, naming `source` and the key, where they do not fit the tower.
        """
        images = ImageSettings.from_dict(content, source)
        for key, made, wanted in (
            ("patch_size", images.patch_size, self.vision.patch_size),
            ("temporal_patch_size", images.temporal_patch_size, self.vision.temporal_patch_size),
            ("merge_size", images.merge_size, self.vision.spatial_merge_size),
        ):
            if made != wanted:
                raise CheckpointError(
                    f"{source}: {key} is {made}, but config.json's vision tower has {wanted}"
                )
        return images


def _check(config: Qwen3VLConfig) -> None:
    text, vision = config.text, config.vision
    text.check()
    token_id(config.image_token_id, "image_token_id", text.vocab_size)
    require(
        type(config.tie_word_embeddings) is bool,
        f"tie_word_embeddings {config.tie_word_embeddings!r}",
        "true or false",
    )
    require(
        vision.hidden_size % (4 * vision.num_heads) == 0,
        f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads",
        "a multiple of 4 per head, for two rotary axes",
    )
    require(
        vision.hidden_act == "gelu_pytorch_tanh",
        f"vision hidden_act {vision.hidden_act!r}",
        "'gelu_pytorch_tanh'",
    )
    require(
        len(text.mrope_section) == 3 and 2 * sum(text.mrope_section) == text.head_dim,
        f"mrope_section {list(text.mrope_section)}",
        f"three numbers that add up to head_dim / 2 = {text.head_dim // 2}",
    )
    require(
        vision.out_hidden_size == text.hidden_size,
        f"vision out_hidden_size {vision.out_hidden_size}",
        f"the decoder's hidden_size {text.hidden_size}",
    )
    side = int(vision.num_position_embeddings**0.5)
    require(
        side * side == vision.num_position_embeddings,
        f"num_position_embeddings {vision.num_position_embeddings}",
        "a square number",
    )
