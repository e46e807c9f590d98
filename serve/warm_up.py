"""Every program that streams can need, run once before the first stream comes."""

from dataclasses import replace

import numpy as np
from PIL import Image

from models.load import LoadedModel
from sample.config import SamplingConfig
from sample.outcome import FinishReason
from sample.pace import programs
from sample.step import ROUND
from serve.batch import Batch
from serve.job import Job, Piece
from serve.pictures import PictureCache
from serve.prefill import Device, Known, Prefill, look, nothing_seen
from serve.prefixes import read_block, write_block
from serve.prompt import PreparedPrompt, prepare_picture
from serve.rows import Rows


def warm_up(device: Device, loaded: LoadedModel) -> None:
    """Compile what follows from the engine's sizes, or fetch it from the cache of compiled programs."""
    _look_at_pictures(device, loaded)
    asked = SamplingConfig(seed=0, max_new_tokens=2**20)
    plain = [replace(asked, top_logprobs=top) for top in {0, device.config.top_logprobs}]
    short = [replace(config, max_new_tokens=2) for config in plain]  # all that is drawn: slots are never full
    rows = [_fed(device, loaded, config, size) for config in short for size in device.config.chunks]
    filtering = [replace(config, min_p=0.5) for config in plain]
    _grow_and_shrink(device, loaded, [*plain, *filtering], rows[0])
    block = read_block(rows[0].state.cache, np.int32(0), device.config.chunks[-1])
    write_block(rows[0].state.cache, block, np.int32(0))


def _look_at_pictures(device: Device, loaded: LoadedModel) -> None:
    pictures = PictureCache(loaded.model, loaded.params, 0)
    for size in device.config.pictures:
        seen = pictures.encode(prepare_picture(loaded.processor, Image.new("RGB", size)))
        for chunk in device.config.chunks:
            look(nothing_seen(device, chunk), seen, np.full(chunk, -1, np.int32))


def _fed(device: Device, loaded: LoadedModel, config: SamplingConfig, size: int) -> Rows:
    prompt = PreparedPrompt(np.zeros(size, np.int32))
    known = Known.nothing_of(loaded, replace(device.config, picture_bytes=0, prefix_bytes=0))
    filled = Prefill(device, _job(loaded, config, prompt), known).advance()
    assert filled is not None  # a prompt of one chunk
    return filled[0]


def _grow_and_shrink(device: Device, loaded: LoadedModel, configs: list[SamplingConfig], row: Rows) -> None:
    batch, sizes = Batch(device), device.config.rows
    prompt = PreparedPrompt(np.zeros(1, np.int32))
    for size in sizes:
        while len(batch.jobs) < size:
            batch.add(_job(loaded, configs[0], prompt), row)
        for config in configs:
            for job in batch.jobs:
                job.config = config
            for steps in programs():
                batch.step(steps)
        batch.row_of(batch.jobs[0])
    for size in reversed((0, *sizes[:-1])):
        for job in batch.jobs[size:]:
            job.ended = True
        batch.drop_ended()
        while batch.rows > max(size, sizes[0]):
            batch.drop_ended()


def _job(loaded: LoadedModel, config: SamplingConfig, prompt: PreparedPrompt) -> Job:
    return Job(prompt, config, _Nobody(), loaded.processor.tokenizer)


class _Nobody:
    """A consumer that takes anything."""

    closed = False

    def room(self, in_flight: int) -> int:
        return ROUND

    def prefilling(self) -> None: ...

    def reseeding(self) -> None: ...

    def push(self, piece: Piece) -> None: ...

    def finish(self, reason: FinishReason, rest: str) -> None: ...

    def fail(self, code: str) -> None: ...
