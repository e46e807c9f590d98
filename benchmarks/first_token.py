"""Time to first token, everything warm: from a picture file's bytes in memory to a token id on the host.

    uv run python -m benchmarks.first_token model=embedded
    uv run python -m benchmarks.first_token shape=qwen3_vl_2b picture=1024x1024 text=36

`total` is the way that a caller goes: open the picture, cut it into patches, `encode_vision`, and the first
token of `sample_streaming`. Its parts are measured one by one, each waited for, so that together they may
take longer. The prompt is a picture and `text` made-up ids. transformers, where torch is installed, begins
with the same picture bytes and the same patches, and makes one token with `generate`.

Prints a table; writes first_token.json in `out`.
"""

import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import records
from benchmarks.compiles import kept_programs
from benchmarks.measure import interleaved
from benchmarks.options import run
from benchmarks.peers import Peer, peer_names
from benchmarks.shapes import Subject, subject
from models.errors import SettingsError
from models.levels import Levels
from models.vision import encode_packed, encode_vision
from sample import SamplingConfig, VLMInputs, make_request, sample_streaming
from sample.pictures import open_picture
from sample.step import prefill, unpack
from sample.streaming import TokenStream

_TOTAL = "total"


@dataclass(frozen=True)
class Options:
    model: str = ""
    shape: str = ""
    picture: str = "1024x1024"  # pixels
    kind: str = "jpeg"  # of the picture's file: jpeg or png
    text: int = 36  # tokens
    repeats: int = 15
    dtype: str = ""
    peers: str = "transformers"
    out: str = "outputs/benchmarks"


def picture_file(size: str, kind: str) -> bytes:
    """A picture file: soft colours with some grain. Raises SettingsError for a size or kind that is none."""
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if sides is None:
        raise SettingsError(f"picture: {size!r}; allowed: WIDTHxHEIGHT in pixels")
    if kind not in ("jpeg", "png"):
        raise SettingsError(f"kind: {kind!r}; allowed: jpeg, png")
    width, height = map(int, sides.groups())
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height))
    grainy = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (height, width, 3), np.int16)
    file = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def prompt_ids(what: Subject, picture_tokens: int, text: int) -> np.ndarray:
    """A framed picture and made-up text: `[1, picture + text]`, the frame counted as text."""
    config: Any = what.model.config
    frame = [getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end")]
    opening, closing = ([token] if token is not None and text > 2 else [] for token in frame)
    words = np.random.default_rng(0).integers(0, 300, text - len(opening) - len(closing))
    words = np.where(words == what.model.image_pad_id, 0, words)
    return np.array([[*opening, *[what.model.image_pad_id] * picture_tokens, *closing, *words]], np.int32)


def ways(what: Subject, file: bytes, text: int) -> dict[str, Callable[[], Any]]:
    """The total, and its parts; what a part begins with is there already."""
    model, params, images = what.model, what.params, what.images
    config = SamplingConfig(temperature=0, max_new_tokens=64)
    key = jax.random.key(0)

    def patches() -> tuple[Levels, np.ndarray]:
        return images.levels([open_picture(file)])

    pixels, grid = patches()
    tokens = prompt_ids(what, int(model.picture_tokens(grid).sum()), text)

    def packed() -> tuple[Any, Any, Any]:
        return *model.pack_pictures(pixels.pixels, grid.astype(np.int64)), pixels.table

    on_host = packed()
    on_device = jax.block_until_ready(jax.device_put(on_host))
    vision = jax.block_until_ready(encode_packed(model, params, *on_device))
    decoder = model.decoder_params(params)

    def inputs(embeddings: Any) -> VLMInputs:
        return VLMInputs(tokens, embeddings, grid, model.image_pad_id)

    def total() -> TokenStream:
        seen = encode_vision(model, params, *patches())
        stream = sample_streaming(model, params, inputs(seen), config, key, tokenizer=what.tokenizer)
        next(stream)
        return stream  # whose end is not of the way to its first token

    def first() -> int:
        r = make_request(model, inputs(vision), config, key)
        _, made = prefill(model, decoder, *r.arguments, slots=r.slots, top=r.top)
        return int(unpack(np.asarray(made)).token[0])

    return {
        _TOTAL: total,
        "host: decode the picture": lambda: open_picture(file),
        "host: patches, with decoding": patches,
        "host: pad to a bucket, layout": packed,
        "upload": lambda: jax.block_until_ready(jax.device_put(on_host)),
        "vision tower": lambda: jax.block_until_ready(encode_packed(model, params, *on_device)),
        "prefill and first token": first,
    }


def peer_ways(what: Subject, file: bytes, text: int, wanted: str) -> dict[str, Callable[[], Any]]:
    """transformers, from the same bytes by the same patches."""
    names = [name for name in peer_names(wanted, plain=False) if "static" not in name]
    if not names:
        return {}
    peer = Peer(what, vision=True)
    _, grid = what.images.preprocess([open_picture(file)])
    tokens = prompt_ids(what, int(what.model.picture_tokens(grid).sum()), text)

    def total(name: str) -> None:
        pixels, _ = what.images.preprocess([open_picture(file)])
        peer.answer(name, tokens, grid, what.model.image_pad_id, pixels)

    return {name: partial(total, name) for name in names}


def benchmark(options: Options) -> dict[str, Any]:
    """Measure, print, write; returns what it wrote."""
    file = picture_file(options.picture, options.kind)
    if not options.text or not options.repeats:
        raise SettingsError("text and repeats: 0; allowed: whole numbers from 1 up")
    with kept_programs():
        what = subject(options.model, options.shape, options.dtype, vision=True)
        own = ways(what, file, options.text)
        peers = peer_ways(what, file, options.text, options.peers)
        seconds = interleaved({**own, **peers}, options.repeats)
    content = {
        "benchmark": "first_token",
        **records.environment(),
        "options": asdict(options),
        "dtype": np.dtype(what.model.dtype).name,
        "file_bytes": len(file),
        "milliseconds": {name: records.spread(1e3 * each) for name, each in seconds.items()},
        "ratios": {f"{name} / {_TOTAL}": records.spread(seconds[name] / seconds[_TOTAL]) for name in peers},
        "peak_bytes": records.peak_memory(),
    }
    asked = f"{options.kind} of {options.picture} + {options.text} text tokens"
    print(f"{records.heading(content)} {what.name}, {content['dtype']}, {asked}")
    print(f"median (lowest..highest) of {options.repeats} repeats\n\n| | ms |\n|---|---|")
    for name, found in content["milliseconds"].items():
        print(f"| {name} | {records.shown(found, 2)} |")
    print("\n" + "; ".join(f"{name} {records.shown(found, 2)}" for name, found in content["ratios"].items()))
    print("written:", records.write(options.out, "first_token", content))
    return content


if __name__ == "__main__":
    run(benchmark, Options, __doc__ or "")
