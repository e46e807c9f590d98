"""`Model`: what the sampler knows of a model, whatever its family."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from models.blocks import Linear
from models.cache import KVCache, shift_slots
from models.decoder import Decoder, VisionEmbeddings
from models.errors import InputError
from models.pixels import STORED


class Model(nn.Module):
    """A vision-language model: static and hashable; its parameters are a pytree beside it.

    A family gives the methods that end in NotImplementedError here, the class attributes, and in
    `setup` its tower, its decoder, and `lm_head` where the head is not tied.

    Attributes:
        config: the family's configuration: `text`, a `DecoderConfig`, `vision`, `image_token_id`, and
            `tie_word_embeddings`.
        dtype: what it computes in.
        fused: the decoder's parameters are those of `fuse`: fewer and larger products, fast for few tokens.
        position_axes: how many numbers say where a token stands.
        vision_parts: the names of the parameters that only `encode_vision` reads.
        decoder_part: the name of the decoder's.
    """

    config: Any
    dtype: Any = jnp.float32
    fused: bool = False
    position_axes: ClassVar[int] = 1
    vision_parts: ClassVar[tuple[str, ...]] = ()
    decoder_part: ClassVar[str] = ""

    @property
    def context_length(self) -> int:
        return self.config.text.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.config.text.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.config.text.hidden_size

    @property
    def image_pad_id(self) -> int:
        return self.config.image_token_id

    @property
    def decoder(self) -> Decoder:
        """The decoder, under the name that it has in the family's checkpoints."""
        return getattr(self, self.decoder_part)

    def lm_head_unless_tied(self) -> Linear | None:
        """For `setup`: the head of a checkpoint that has its own."""
        if self.config.tie_word_embeddings:
            return None
        return Linear(self.config.text.vocab_size, False, out_dtype=jnp.float32, rows=self.fused)

    def call(self, method: str, params: Any, *args: Any) -> Any:
        """`apply` with plain parameters: one of the methods below, as a pure function."""
        return self.apply({"params": params}, *args, method=method)

    def decoder_params(self, params: Any) -> Any:
        """What `forward` and `head` read of `params`: a step hands over no more arrays than it needs."""
        return {name: part for name, part in params.items() if name not in self.vision_parts}

    def vision_params(self, params: Any) -> Any:
        """What `encode_vision` reads of `params`."""
        return {name: part for name, part in params.items() if name in self.vision_parts}

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        c = self.config.text
        return KVCache.empty(c.num_hidden_layers, batch, c.num_key_value_heads, slots, c.head_dim, self.dtype)

    def shifted_cache(
        self,
        cache: KVCache,
        kept: Int[Array, "B"],
        dropped: Int[Array, "B"],
        distance: Int[Array, "B"],
    ) -> KVCache:
        """The cache without `dropped` slots behind the first `kept`: what lies behind them moves down.

        Args:
            distance: how far the moved tokens' positions go down, on all axes alike.
        """
        angles = self.angles(jnp.broadcast_to(-distance[:, None], (self.position_axes, len(distance), 1)))
        return shift_slots(cache, kept, dropped, angles[:, 0])

    def picture_tokens(self, grid_thw: np.ndarray) -> np.ndarray:
        """How many tokens each picture of `grid_thw [pictures, 3]` has, on the host: `[pictures]`."""
        raise NotImplementedError

    def picture_spans(self, tokens: np.ndarray, grid_thw: np.ndarray) -> list[tuple[int, int]]:
        """Of each picture of one prompt `[T]` the first token and the one behind its last, on the host.

        A family adds the tokens that frame it: without the picture they make no sense.
        """
        places = np.flatnonzero(tokens == self.image_pad_id)
        ends = np.cumsum(self.picture_tokens(grid_thw)).tolist()
        bounds = zip([0, *ends], ends, strict=False)
        return [(int(places[first]), int(places[end - 1]) + 1) for first, end in bounds]

    def prompt_positions(
        self, tokens: np.ndarray, grid_thw: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of a right-padded prompt stand, on the host.

        Args:
            tokens: `[B, T]`; at `image_pad_id` are the pictures, in order.
            grid_thw: `[pictures, 3]` in patches.
            lengths: `[B]`, tokens before the padding.

        Returns:
            positions int32 `[axes, B, T]` and delta int32 `[B]`: a later token stands at its index + delta.

        Raises:
            InputError: the picture tokens do not match `grid_thw`.
        """
        raise NotImplementedError

    def angles(self, positions: Int[Array, "axes B T"]) -> Float[Array, "B T half"]:
        """Rotary angles of tokens at these positions, in radians."""
        raise NotImplementedError

    def pack_pictures(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> tuple[Any, Any]:
        """The arguments of `encode_vision`, padded to a bucket; the pixels on the host.

        Args:
            pixel_values: `[patches, patch_dim]`, flat normalised patches of all pictures; or the pixels of
                `Levels`.
            grid_thw: `[pictures, 3]` in patches; whole numbers from 1 up, at least one picture.

        Raises:
            InputError: sizes that the tower cannot take, or patches that do not match them.
        """
        raise NotImplementedError

    def cut_pictures(self, pixels: UInt8[Array, "*P features"], layout: Any) -> UInt8[Array, "*P features"]:
        """What `pack_pictures` made of `Levels`, on the device, to patches, each (row, column, channel)."""
        raise NotImplementedError

    def encode_vision(self, pixel_values: Array, layout: Any) -> VisionEmbeddings:
        """The tower, on the device: what `pack_pictures` made to what the decoder sees."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "axes B T"],
        start: Int[Array, "B"],
        cache: KVCache | None = None,
        vision: VisionEmbeddings | None = None,
        filled: int | Int[Array, ""] | None = None,
        vision_rows: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Hidden states behind the last norm, and the cache with these tokens in their slots.

        Args:
            tokens: ids.
            positions: rotary positions, on each axis that the family has.
            start: the slot of each row's first token; a token sees the slots up to its own.
            cache: without one, the tokens see one another alone.
            filled: a bound on `start + T` of the rows that count: of others, whose tokens are fed and not
                used, no more slots are read. Best known while tracing; without it, all rows count.
            vision_rows: the row of `vision` that takes each embedding's place, -1 for text; without it the
                tokens at `image_pad_id` take them in order.
        """
        filled = jnp.max(start) + tokens.shape[1] if filled is None else filled
        if vision is None:
            return self.decoder(tokens, self.angles(positions), start, cache, None, filled)
        rows = image_rows(tokens, self.image_pad_id, vision) if vision_rows is None else vision_rows
        return self.decoder(tokens, self.angles(positions), start, cache, (rows, vision), filled)

    def head(self, hidden: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        """Logits, float32: sums of products are not rounded to the model's dtype."""
        if self.config.tie_word_embeddings:
            return self.decoder.embed_tokens.attend(hidden)
        return self.lm_head(hidden)

    def logits(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "axes B T"],
        vision: VisionEmbeddings | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of all positions at once, without a cache: for training and evaluation."""
        B, T = tokens.shape
        start = jnp.zeros(B, jnp.int32)
        return self.head(self.forward(tokens, positions, start, vision=vision, filled=T)[0])

    def __call__(self, pixel_values: Array, layout: Any, tokens: Array, positions: Array) -> Array:
        """All parts once, so that `init` meets every parameter."""
        return self.logits(tokens, positions, self.encode_vision(pixel_values, layout))

    def init_params(self, key: Array) -> Any:
        """Random float32 parameters: normal(0.02) kernels and tables, norms at one, biases at zero."""
        pixels, layout = self.smallest_picture()
        token = jnp.zeros((1, 1), jnp.int32)
        positions = jnp.zeros((self.position_axes, 1, 1), jnp.int32)
        return self.init(key, pixels, layout, token, positions)["params"]

    def smallest_picture(self) -> tuple[Any, Any]:
        """The arguments of `encode_vision` for the smallest picture that there is, all zeros."""
        raise NotImplementedError


def image_rows(tokens: Int[Array, "B T"], image_pad_id: int, vision: VisionEmbeddings) -> Int[Array, "B T"]:
    """The row of `vision` that each token takes, in order; -1 for text."""
    seen = tokens == image_pad_id
    order = jnp.cumsum(seen.reshape(-1)).reshape(seen.shape) - 1
    return jnp.where(seen, jnp.minimum(order, vision.embeddings.shape[0] - 1), -1)


def check_patches(pixel_values: np.ndarray, grid_thw: np.ndarray, vision: Any) -> None:
    """Raises InputError where the patches are not as many and as large as the grids need."""
    features = STORED * vision.patch_size**2 if pixel_values.dtype == np.uint8 else vision.patch_dim
    needed = [int(grid_thw.prod(1).sum()), features]
    if list(pixel_values.shape) != needed:
        raise InputError(
            f"pixel_values: {list(pixel_values.shape)}; grid_thw {grid_thw.tolist()} needs {needed}"
        )
