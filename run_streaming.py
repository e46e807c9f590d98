"""A picture and a prompt in; tokens on standard output as they are made."""

import sys

from cli.command import DONE, run_command
from cli.generation import load, prepare, sampling_config
from cli.interrupts import INTERRUPTED, Interrupts
from cli.output import writer_for
from cli.report import Report, closing_line, stream_summary
from cli.requests import single_request
from conf.schema import Settings


def stream(settings: Settings, report: Report, interrupts: Interrupts) -> int:
    request = single_request(settings.inference)
    loaded, compilations = load(settings.model, report)

    import jax  # noqa: PLC0415  (settings and requests are checked before JAX is imported)

    from sample import sample_streaming  # noqa: PLC0415

    inputs, longest = prepare(loaded, request.images, request.prompt, settings.inference, report)
    tokens = sample_streaming(
        loaded.model,
        loaded.params,
        inputs,
        sampling_config(settings.sampling, loaded, longest),
        jax.random.key(settings.sampling.seed),
        tokenizer=loaded.processor.tokenizer,
    )
    writer = writer_for(settings.output)
    with tokens:
        try:
            for index, token in enumerate(tokens):
                if index == 0:
                    report.end()
                    interrupts.cancel = tokens.cancel
                writer.token(index, token, tokens.top_logprobs)
        finally:
            report.end()
            summary = stream_summary(tokens.finish_reason, tokens.stats)
            writer.close(tokens.rest, summary)
            report.line(f"{closing_line(summary)} | {compilations}")
    return INTERRUPTED if interrupts.seen else DONE


if __name__ == "__main__":
    sys.exit(run_command(stream, __doc__ or "", sys.argv[1:]))
