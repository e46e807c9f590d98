"""A prompt on its way into the cache, piece by piece, in a row of its own beside the batch."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from models.buckets import bucket
from models.cache import KVCache
from models.decoder import VisionEmbeddings
from models.load import LoadedModel
from models.model import Model
from sample.config import SamplingConfig
from sample.loops import history_of
from sample.step import DecodeState, Prompt, prefill_chunk
from sample.transfer import to_device
from serve.engine_config import EngineConfig
from serve.job import Job, sampling_row
from serve.pictures import PictureCache
from serve.prefixes import PrefixCache, write_block
from serve.prompt import PreparedPrompt
from serve.rows import Rows

_SMALLEST_CACHE = 256  # tokens


class Device(NamedTuple):
    """What the programs of the engine are made of."""

    model: Model
    params: Any  # those of the decoder
    config: EngineConfig
    deepstack: int  # layers that get something of the pictures

    @classmethod
    def of(cls, model: Model, params: Any, config: EngineConfig) -> "Device":
        """From all of a model's parameters."""
        seen = jax.eval_shape(partial(model.call, "encode_vision"), params, *model.smallest_picture())
        return cls(model, model.decoder_params(params), config, seen.deepstack.shape[0])

    @property
    def context(self) -> int:
        """Prompt and answer of one stream together, in tokens."""
        return self.config.context_of(self.model)

    @property
    def slots(self) -> int:
        """Of a row: a last chunk may reach beyond its prompt."""
        return bucket(self.context + self.config.chunks[-1], _SMALLEST_CACHE)

    def top(self, wanted: bool) -> int:
        """How many alternatives a program reports."""
        return min(self.config.top_logprobs, self.model.vocab_size) if wanted else 0


class Known(NamedTuple):
    """What earlier prompts have left behind."""

    pictures: PictureCache
    prefixes: PrefixCache

    @classmethod
    def nothing_of(cls, loaded: LoadedModel, config: EngineConfig) -> "Known":
        """Yet; of each as many bytes may be kept as `config` says."""
        model, params, _ = loaded
        prefixes = PrefixCache(model, config.chunks[-1], config.prefix_bytes)
        return cls(PictureCache(model, params, config.picture_bytes), prefixes)


class Prefill:
    """One stream's prompt; `advance` does one piece of it. Of one thread: the one that owns the device.

    Args:
        begun: what to feed instead of the job's prompt, and the row that is to hold it.
    """

    def __init__(
        self, device: Device, job: Job, known: Known, begun: tuple[Prompt, Rows] | None = None
    ) -> None:
        self.job = job
        self._device, self._known = device, known
        self._begun = begun
        self._length = len(job.prompt.tokens) if begun is None else int(begun[0].lengths[0])
        self._seen = [] if begun is None or job.endless is None else job.endless.seen
        self._keys = known.prefixes.keys(job.prompt) if begun is None else []
        whole = (self._length - 1) // known.prefixes.block  # the last token is always fed: it draws
        self._copied = known.prefixes.known(self._keys[:whole])
        self._fed = len(self._copied) * known.prefixes.block

    @classmethod
    def renewing(cls, device: Device, job: Job, row: Rows, known: Known) -> "Prefill":
        """Of an endless stream's full row: its sinks and tail, computed anew."""
        assert job.endless is not None
        whole = job.endless.begin_renewal()
        state = row.state._replace(
            length=jax.device_put(np.zeros(1, np.int32)), delta=jax.device_put(whole.deltas)
        )
        return cls(device, job, known, (whole, row._replace(state=state)))

    @property
    def cost(self) -> int:
        """Of the next piece, in tokens; a picture counts as the largest chunk."""
        chunks = self._device.config.chunks
        if any(p not in self._known.pictures for p in self.job.prompt.pictures[len(self._seen) :]):
            return chunks[-1]
        return chunk_size(chunks, self._length - self._fed)

    def advance(self) -> tuple[Rows, Array] | None:
        """Encode one picture that is not known yet, or feed one chunk.

        Returns:
            Behind the last chunk the filled row, and the packed output of its first token; None before.
        """
        return None if self._encode_next() else self._feed()

    def _encode_next(self) -> bool:
        """Whether there was a picture to encode."""
        for picture in self.job.prompt.pictures[len(self._seen) :]:
            found = self._known.pictures.get(picture)
            self._seen.append(found or self._known.pictures.encode(picture))
            if found is None:
                return True
        return False

    def _feed(self) -> tuple[Rows, Array] | None:
        device, job = self._device, self.job
        prompt, row = self._begun or self._first_row()
        start = self._fed
        size = chunk_size(device.config.chunks, self._length - self._fed)
        chunk = prompt.part(start, start + size, size)
        self._fed += int(chunk.lengths[0])
        last = self._fed == self._length
        vision, rows = self._look(np.asarray(chunk.vision_rows[0]))
        state, packed = prefill_chunk(
            device.model,
            device.params,
            row.state,
            chunk._replace(vision_rows=rows[None]),
            vision,
            row.sampling,
            np.array([last]),
            top=device.top(job.config.top_logprobs > 0),
        )
        row = row._replace(state=state)
        self._begun = (prompt, row)
        self._keep(state.cache, start, size)
        if last and job.endless is not None:
            job.endless.seen = self._seen
        return (row, packed) if last else None

    def _keep(self, cache: KVCache, start: int, size: int) -> None:
        """A whole block is known from now on."""
        number, prefixes = start // size, self._known.prefixes
        if size == prefixes.block and number < len(self._keys):
            prefixes.keep(self._keys[number], cache, start)

    def _first_row(self) -> tuple[Prompt, Rows]:
        """With what is known of the prompt's beginning."""
        prompt, row = first_row(self._device, self.job.prompt, self.job.config)
        cache, block = row.state.cache, self._known.prefixes.block
        for number, copied in enumerate(self._copied):
            cache = write_block(cache, copied, np.int32(number * block))
        length = jax.device_put(np.array([self._fed], np.int32))
        return prompt, row._replace(state=row.state._replace(cache=cache, length=length))

    def _look(self, rows: Int32[np.ndarray, " C"]) -> tuple[VisionEmbeddings, Int32[np.ndarray, " C"]]:
        """What a chunk sees of the pictures: an embedding for each of its tokens, and which of them count."""
        vision, first = nothing_seen(self._device, len(rows)), 0
        for picture, embeddings in zip(self.job.prompt.pictures, self._seen, strict=True):
            tokens = int(self._device.model.picture_tokens(picture.grid_thw).sum())
            inside = (rows >= first) & (rows < first + tokens)
            if inside.any():
                vision = look(vision, embeddings, np.where(inside, rows - first, -1))
            first += tokens
        return vision, np.where(rows >= 0, np.arange(len(rows), dtype=np.int32), -1)


def chunk_size(sizes: tuple[int, ...], left: int) -> int:
    """The smallest that holds what is left of a prompt, or the largest."""
    return next((size for size in sizes if size >= left), sizes[-1])


def first_row(device: Device, prompt: PreparedPrompt, asked: SamplingConfig) -> tuple[Prompt, Rows]:
    """The whole prompt on the host, and a row on the device that has nothing of it yet."""
    model, tokens = device.model, prompt.tokens
    whole = prompt.padded(model)
    in_prompt = np.zeros((1, model.vocab_size), bool)
    in_prompt[0, tokens] = True
    zero = np.zeros(1, np.int32)
    given = {
        "token": zero,
        "length": zero,
        "delta": whole.deltas,
        "count": zero,
        "key": np.array([[0, asked.seed or 0]], np.uint32),  # jax.random.PRNGKey(seed), without the device
        "in_prompt": in_prompt,
        "drawn": np.zeros((1, model.vocab_size), np.int32),
        "status": zero,
        "history": history_of([tokens], device.slots, device.slots),
    }
    sampling = to_device(sampling_row(model, device.config, asked))
    state = DecodeState(cache=_empty_cache(model, device.slots), **jax.device_put(given))
    return whole, Rows(state, sampling)


@partial(jax.jit, static_argnames=("model", "slots"))
def _empty_cache(model: Model, slots: int) -> KVCache:
    return model.empty_cache(1, slots)


def nothing_seen(device: Device, size: int) -> VisionEmbeddings:
    """Embeddings of a chunk without pictures, all zeros."""
    width, dtype = device.model.hidden_size, device.model.dtype
    shapes = ((size, width), (device.deepstack, size, width))
    return VisionEmbeddings(*jax.device_put([np.zeros(shape, dtype) for shape in shapes]))


@jax.jit
def look(
    vision: VisionEmbeddings, picture: VisionEmbeddings, rows: Int[Array | np.ndarray, " C"]
) -> VisionEmbeddings:
    """A chunk's embeddings with those of one picture's `rows`; -1: what was there."""
    seen, at = (jnp.asarray(rows) >= 0)[:, None], jnp.maximum(rows, 0)
    return VisionEmbeddings(
        jnp.where(seen, picture.embeddings[at], vision.embeddings),
        jnp.where(seen, picture.deepstack[:, at], vision.deepstack),
    )
