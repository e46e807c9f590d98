"""From settings to a loaded model and what it is asked."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.environment import Compilations, device_line, prepare_environment
from cli.report import Report, size
from conf.schema import InferenceSettings, ModelSettings, SamplingSettings

if TYPE_CHECKING:
    from models import LoadedModel
    from sample import SamplingConfig, VLMInputs

_ENDLESS = {"max_new_tokens": 2**31 - 1, "ignore_eos": True, "no_repeat_ngram_size": 6}


def load(settings: ModelSettings, report: Report) -> "tuple[LoadedModel, Compilations]":
    """The checkpoint on the device; says so on standard error.

    Raises:
        CheckpointError: it cannot be found or used.
    """
    prepare_environment(report)
    report.begin("starting")
    compilations = Compilations()
    report.line(device_line())
    return load_checkpoint(settings, report), compilations


def load_checkpoint(settings: ModelSettings, report: Report) -> "LoadedModel":
    """One more on the device; see `load` for the first.

    Raises:
        CheckpointError: it cannot be found or used.
    """
    from models import load_model  # noqa: PLC0415  (imports JAX)

    began, read = time.perf_counter(), 0

    def progress(done: int, total: int) -> None:
        nonlocal read
        read = total
        report.progress(done, total)

    report.begin(f"loading {settings.name}")
    loaded = load_model(settings.name, dtype=settings.dtype and settings.dtype.value, progress=progress)
    report.line(f"loaded {size(read)} in {time.perf_counter() - began:.1f} s")
    return loaded


def sampling_config(
    settings: SamplingSettings, loaded: "LoadedModel", longest: int, *, endless: bool = False
) -> "SamplingConfig":
    """The settings; where they say nothing, the checkpoint's, or what an endless stream needs.

    Without a `max_new_tokens` of the user's, an answer fills at most what a prompt of `longest` tokens leaves
    of the model's context, and an endless stream has no limit.

    Raises:
        SettingsError: a value that does not fit.
    """
    from models import SettingsError  # noqa: PLC0415
    from sample import SamplingConfig  # noqa: PLC0415

    defaults: dict[str, Any] = {"eos_id": loaded.processor.eos_ids, "pad_id": loaded.processor.pad_id}
    if endless:
        defaults |= _ENDLESS
    # The seed makes the caller's key, from which each row draws its own: in here, all rows would draw alike.
    chosen = {name: value for name, value in vars(settings).items() if value is not None and name != "seed"}
    try:
        config = SamplingConfig.from_generation(
            loaded.processor.generation, **{**defaults, **chosen, "logprobs": settings.logprobs.value}
        )
    except SettingsError as error:
        raise SettingsError(f"sampling.{error}") from None
    room = loaded.model.context_length - longest
    if not endless and settings.max_new_tokens is None and room < config.max_new_tokens:
        config = dataclasses.replace(config, max_new_tokens=room)
    return config


def prepare(
    loaded: "LoadedModel",
    images: Sequence[Any],
    prompt: str | Sequence[str],
    settings: InferenceSettings,
    report: Report,
) -> "tuple[VLMInputs, int]":
    """Pictures and prompts on the device, and the length of the longest prompt in tokens.

    `images` are a prompt's pictures, or those of each where `prompt` is a sequence.

    Raises:
        InputError: a picture or prompt that cannot be used.
    """
    from sample import prepare_inputs  # noqa: PLC0415

    report.begin("compiling, or fetching what was compiled before")
    limit = settings.max_image_pixels
    inputs = prepare_inputs(
        *loaded,
        images=images,
        prompt=prompt,
        system=settings.system,
        **({} if limit is None else {"max_image_pixels": limit}),
    )
    return inputs, inputs.prompt_tokens.shape[1]
