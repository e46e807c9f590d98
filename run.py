"""Pictures and prompts in; whole answers on standard output, one batch for all of them."""

import sys
import threading
import time

from cli.answers import batch_summary, rows_of
from cli.command import DONE, run_command
from cli.generation import load, prepare, sampling_config
from cli.interrupts import INTERRUPTED, Interrupts
from cli.output import writer_for
from cli.report import Report, batch_closing_line
from cli.requests import batch_requests
from cli.streams import check_whole_answers
from conf.schema import Settings


def answer(settings: Settings, report: Report, interrupts: Interrupts) -> int:
    requests = batch_requests(settings.inference)
    check_whole_answers(settings)
    loaded, compilations = load(settings.model, report)

    import jax  # noqa: PLC0415  (settings and requests are checked before JAX is imported)

    from sample import sample  # noqa: PLC0415

    images, prompts = [r.images for r in requests], [r.prompt for r in requests]
    inputs, longest = prepare(loaded, images, prompts, settings.inference, report)
    config = sampling_config(settings.sampling, loaded, longest)
    cancelled = threading.Event()
    interrupts.cancel = cancelled.set
    began = time.perf_counter()
    result = sample(
        loaded.model,
        loaded.params,
        inputs,
        config,
        jax.random.key(settings.sampling.seed),
        tokenizer=loaded.processor.tokenizer,
        cancelled=cancelled.is_set,
    )
    seconds = time.perf_counter() - began
    report.end()
    rows = rows_of(requests, result)
    writer = writer_for(settings.output.format)
    for request, row in zip(requests, rows, strict=True):
        writer.row(request.header() if len(rows) > 1 else None, row)
    summary = batch_summary(rows, inputs, seconds)
    writer.close("", summary)
    report.line(f"{batch_closing_line(summary)} | {compilations}")
    return INTERRUPTED if interrupts.seen else DONE


if __name__ == "__main__":
    sys.exit(run_command(answer, __doc__ or "", sys.argv[1:]))
