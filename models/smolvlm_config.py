"""SmolVLM2's `config.json` as frozen dataclasses.

What a checkpoint leaves out has transformers' default, since its files keep only what differs from it.
Source: transformers 5.23, `configuration_smolvlm.py` and `configuration_llama.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.config_parts import DecoderConfig, build, decoder_rope, given, require, section, token_id
from models.smolvlm_images import TileSettings


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower. Sizes are in channels, `image_size` and `patch_size` in pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """A patch as the checkpoint's convolution sees it."""
        return self.num_channels, self.patch_size, self.patch_size

    @property
    def patch_dim(self) -> int:
        return math.prod(self.patch_shape)

    @property
    def grid_side(self) -> int:
        """Rows, and columns, of the table of learned positions."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SmolVLMConfig:
    """A SmolVLM2 model; hashable, so that it can be a static argument of `jax.jit`.

    `scale_factor` squared patches become one token.
    """

    text: DecoderConfig
    vision: VisionConfig
    image_token_id: int
    scale_factor: int
    tie_word_embeddings: bool
    turn_end: ClassVar[str | None] = "<end_of_utterance>"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SmolVLMConfig":
        """Read the content of a `config.json`.

        Raises:
            CheckpointError: a key is of the wrong kind, or asks for what this family does not have.
        """
        text = {**_LLAMA, **given(section(config, "text_config"))}
        kind = text.get("model_type", "llama")
        require(kind == "llama", f"text_config's model_type {kind!r}", "'llama'")
        require(not text.get("mlp_bias"), f"mlp_bias {text.get('mlp_bias')!r}", "false")
        heads = text["num_attention_heads"]
        made = build(
            DecoderConfig,
            {"num_key_value_heads": heads, **text},
            rope_theta=decoder_rope(text)["rope_theta"],
            head_dim=text.get("head_dim") or _share(text["hidden_size"], heads, "hidden_size"),
        )
        result = build(
            cls,
            {"scale_factor": 2, "tie_word_embeddings": False, "image_token_id": 128257, **given(config)},
            text=made,
            vision=build(VisionConfig, given(section(config, "vision_config"))),
        )
        _check(result)
        return result

    def image_settings(self, content: Mapping[str, Any], source: str) -> TileSettings:
        """How the tower wants its pictures: `content` is that of `source`, a preprocessor_config.json.

        Raises CheckpointError, naming `source` and the key, where they do not fit the tower.
        """
        return TileSettings.from_dict(content, source, self.vision.patch_size, self.scale_factor)


_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def _share(size: Any, heads: Any, name: str) -> int:
    whole = all(type(n) is int and n > 0 for n in (size, heads)) and size % heads == 0
    require(whole, f"{name} {size!r} over {heads!r} heads", "a multiple of the heads")
    return size // heads


def _check(config: SmolVLMConfig) -> None:
    vision = config.vision
    config.text.check()
    token_id(config.image_token_id, "image_token_id", config.text.vocab_size)
    require(config.text.head_dim % 2 == 0, f"head_dim {config.text.head_dim}", "an even number")
    _share(vision.hidden_size, vision.num_attention_heads, "vision hidden_size")
    require(vision.num_channels == 3, f"num_channels {vision.num_channels}", "3")
    require(
        vision.hidden_act == "gelu_pytorch_tanh",
        f"vision hidden_act {vision.hidden_act!r}",
        "'gelu_pytorch_tanh'",
    )
    require(
        vision.grid_side >= 1,
        f"image_size {vision.image_size} with patch_size {vision.patch_size}",
        "an image_size of one patch or more",
    )
