"""From settings to a stream: how it goes on when its context is full, and who summarises what leaves."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cli.generation import load_checkpoint
from cli.report import Report
from cli.requests import Request
from cli.typed import UsageError
from conf.schema import ModelSettings, Policy, Settings, StreamSettings

if TYPE_CHECKING:
    from models import LoadedModel
    from sample import SamplingConfig, StreamConfig, TokenStream
    from sample.summary_config import SummaryConfig

_CONTEXT = 2048  # tokens, where neither the user nor the model says less
_USED_BY = {  # the policies for which a setting means something
    "sinks": (Policy.reseed, Policy.shift, Policy.window),
    "tail": (Policy.reseed, Policy.shift),
    "summary": (Policy.reseed,),
}


def is_endless(settings: StreamSettings) -> bool:
    return settings.policy is not Policy.stop


def check_stream(settings: StreamSettings) -> None:
    """What can be said before the model and the prompt are known.

    Raises:
        UsageError: sinks and tail that cannot fit, or are none; settings that the policy has no use for.
    """
    _check_used(settings)
    if settings.policy not in (Policy.reseed, Policy.shift):
        return
    sinks, context = settings.sinks or 0, settings.context or _CONTEXT
    if sinks + settings.tail >= context:
        raise UsageError(
            f"stream.tail: sinks of {sinks} tokens + a tail of {settings.tail} = {sinks + settings.tail}; "
            f"allowed: up to {context - 1}, one less than the context of {context}"
        )
    if settings.sinks == 0 and settings.tail == 0:
        raise UsageError("stream.tail: 0 with stream.sinks=0; allowed: 1 or more of one of them")


def _check_used(settings: StreamSettings) -> None:
    plain = StreamSettings()
    for name, policies in _USED_BY.items():
        if settings.policy not in policies and getattr(settings, name) != getattr(plain, name):
            raise UsageError(
                f"stream.{name}: without effect with stream.policy={settings.policy.value}; "
                f"allowed: with {' or '.join(f'stream.policy={policy.value}' for policy in policies)}"
            )
    off = replace(plain.summary, enabled=False)
    if settings.summary.enabled is False and settings.summary != off:
        raise UsageError(
            "stream.summary: stream.summary.enabled=false leaves its other settings without effect"
        )


def check_whole_answers(settings: Settings) -> None:
    """`run.py` has no streams.

    Raises:
        UsageError: a setting of a stream.
    """
    if settings.stream != StreamSettings():
        raise UsageError("stream: run.py waits for whole answers; allowed: stream=stop, or run_streaming.py")
    if settings.output.plot is not None:
        raise UsageError("output.plot: run.py has no stream to draw; allowed: with run_streaming.py")


def stream_config(settings: StreamSettings, loaded: "LoadedModel", report: Report) -> "StreamConfig | None":
    """The settings; None where the model's own context is the only limit.

    Raises:
        SettingsError: values that do not fit together.
        CheckpointError: a summarising checkpoint that cannot be found or used.
    """
    from sample import StreamConfig  # noqa: PLC0415  (imports JAX)

    if not is_endless(settings) and settings.context is None:
        return None
    with named_settings():
        return StreamConfig(
            policy=settings.policy.value,
            context=settings.context or min(_CONTEXT, loaded.model.context_length),
            sinks=settings.sinks,
            tail=settings.tail,
            summary=_summary_config(settings, loaded, report),
        )


@contextlib.contextmanager
def named_settings() -> Iterator[None]:
    """Errors about the settings of a stream name them as the command line does."""
    from models import SettingsError  # noqa: PLC0415

    try:
        yield
    except SettingsError as error:
        name = str(error).partition(":")[0]
        own = name in vars(StreamSettings()) or name.startswith("summary.")
        raise SettingsError(f"stream.{error}" if own else str(error)) from None


def start_event(
    settings: Settings,
    request: Request,
    tokens: "TokenStream",
    sampling: "SamplingConfig",
    config: "StreamConfig | None",
) -> dict[str, Any]:
    """What is known before the first token."""
    event: dict[str, Any] = {
        "model": settings.model.name,
        "images": list(request.images),
        "prompt": request.prompt,
        "prompt_tokens": tokens.stats.prompt_tokens,
        "image_tokens": tokens.stats.image_tokens,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": settings.sampling.seed,
        "policy": settings.stream.policy.value,
    }
    if config is not None:
        sinks = tokens.stats.prompt_tokens if config.sinks is None else config.sinks
        event |= {"context": config.context, "sinks": sinks, "tail": config.tail}
        event["summary"] = config.summary is not None
    return event


def _summary_config(
    settings: StreamSettings, loaded: "LoadedModel", report: Report
) -> "SummaryConfig | None":
    from sample.summarizers import ModelSummarizer  # noqa: PLC0415
    from sample.summary_config import SummaryConfig  # noqa: PLC0415

    chosen = settings.summary
    wanted = chosen.enabled
    if wanted is None:
        wanted = settings.policy is Policy.reseed or chosen.model is not None
    if not wanted:
        return None
    summarizing = loaded
    if chosen.model is not None:
        summarizing = load_checkpoint(ModelSettings(name=chosen.model), report)
    summarizer = ModelSummarizer(
        summarizing.model,
        summarizing.params,
        summarizing.processor.tokenizer,
        eos_ids=summarizing.processor.eos_ids,
        max_tokens=chosen.max_tokens,
        format=chosen.format.value,
    )
    return SummaryConfig(
        summarizer=summarizer,
        sink_ratio=chosen.sink_ratio,
        max_tokens=chosen.max_tokens,
        timeout=chosen.timeout,
    )
