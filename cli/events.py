"""What a stream tells while it runs: its start, tokens, reseeds, summaries and end, in their order."""

from typing import TYPE_CHECKING, Any

from cli.output import Writer
from cli.plot import PerplexityCurve
from cli.report import stream_summary

if TYPE_CHECKING:
    from sample import Token, TokenStream


class StreamEvents:
    """Hands a stream's tokens and events to a writer, and its perplexity to a plot.

    `start` is what the start event tells.
    """

    def __init__(
        self, tokens: "TokenStream", writer: Writer, start: dict[str, Any], plot: str | None
    ) -> None:
        self._tokens, self._writer, self._start, self._plot = tokens, writer, start, plot
        self._curve = PerplexityCurve()

    def start(self) -> None:
        self._writer.event("start", self._start)

    def token(self, token: "Token") -> None:
        tokens, index = self._tokens, self._tokens.stats.new_tokens - 1
        self._summaries(index)
        if tokens.reseed is not None:
            self._reseed(tokens.reseed)
        self._writer.token(index, token, tokens.surprisal, tokens.top_logprobs)
        if self._plot is not None:
            self._curve.add(index, tokens.perplexity.window_perplexity, tokens.perplexity.perplexity)

    def draw(self) -> None:
        """The plot, if there is to be one. Before `end`, which fails where the reader has gone."""
        if self._plot is not None:
            self._curve.draw(self._plot)

    def end(self) -> dict[str, Any]:
        """The last event; returns the statistics."""
        tokens = self._tokens
        self._summaries(tokens.stats.new_tokens)
        summary = stream_summary(tokens)
        self._writer.close(tokens.rest, summary)
        return summary

    def _reseed(self, reseed: Any) -> None:
        told = reseed._asdict()
        index = told.pop("token")
        ended = self._tokens.perplexity.segments[-2:-1]  # the last one has begun with this token
        perplexity = ended[0].perplexity if ended else None
        self._writer.event("reseed", {"index": index, **told, "perplexity": perplexity})
        self._curve.mark_reseed(index)

    def _summaries(self, index: int) -> None:
        events = self._tokens.summary.events if self._tokens.summary is not None else ()
        while events:
            self._writer.event("summary", {"index": index, **events.popleft()._asdict()})
