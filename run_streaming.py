"""A picture and a prompt in; tokens on standard output as they are made."""

import sys

from cli.command import DONE, leave, run_command
from cli.events import StreamEvents
from cli.generation import load, prepare, sampling_config
from cli.interrupts import INTERRUPTED, Interrupts
from cli.output import writer_for
from cli.plot import check_plot
from cli.report import Report, closing_line
from cli.requests import single_request
from cli.streams import check_stream, is_endless, named_settings, start_event, stream_config
from conf.schema import Settings


def stream(settings: Settings, report: Report, interrupts: Interrupts) -> int:
    request = single_request(settings.inference)
    check_stream(settings.stream)
    check_plot(settings.output.plot)
    loaded, compilations = load(settings.model, report)

    import jax  # noqa: PLC0415  (settings and requests are checked before JAX is imported)

    from sample import sample_streaming  # noqa: PLC0415

    config = stream_config(settings.stream, loaded, report)
    inputs, longest = prepare(loaded, request.images, request.prompt, settings.inference, report)
    sampling = sampling_config(settings.sampling, loaded, longest, endless=is_endless(settings.stream))
    with named_settings():
        tokens = sample_streaming(
            loaded.model,
            loaded.params,
            inputs,
            sampling,
            jax.random.key(settings.sampling.seed),
            tokenizer=loaded.processor.tokenizer,
            stream=config,
        )
    start = start_event(settings, request, tokens, sampling, config)
    events = StreamEvents(tokens, writer_for(settings.output.format), start, settings.output.plot)
    with tokens:
        try:
            report.end()
            events.start()
            report.begin("compiling the steps, or fetching them")
            for token in tokens:
                if tokens.stats.new_tokens == 1:
                    report.end()
                    interrupts.cancel = tokens.cancel
                events.token(token)
        finally:
            report.end()
            try:
                events.draw()
            finally:
                summary = events.end()
                report.line(f"{closing_line(summary)} | {compilations}")
    return INTERRUPTED if interrupts.seen else DONE


if __name__ == "__main__":
    leave(run_command(stream, __doc__ or "", sys.argv[1:]))
