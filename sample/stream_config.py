"""How a stream goes on when the cache is full: values, ranges, and the errors when they are wrong."""

from dataclasses import dataclass
from typing import Literal, get_args, no_type_check

from models.errors import SettingsError
from sample.config import integer, refusal
from sample.summary_config import SummaryConfig

Policy = Literal["reseed", "shift", "window", "stop"]
_MOST = 2**31 - 1  # tokens


@no_type_check  # a wrong type is a SettingsError, also while tests check the other annotations
@dataclass(frozen=True)
class StreamConfig:
    """What the cache holds of a stream that is longer than it. Immutable and hashable; sizes in tokens.

    Attributes:
        policy: what happens when the cache is full.
            "reseed": clear it, compute sinks and tail anew in one prefill, go on behind them. Positions stay
            without gaps, and a token costs what it costs in a short answer (Han et al. 2024, LM-Infinite,
            arXiv:2308.16137; known as BlinkKV).
            "shift": keep what was computed, move the tail down behind the sinks and turn its keys to their
            new positions (attention sinks, StreamingLLM, arXiv:2309.17453). Cheaper and less exact. Each move
            rounds a key again: in bfloat16 let the tail leave room, so that none moves hundreds of times.
            "window": compute sinks and all that fits behind them anew at every token. Exact and slow.
            "stop": end with reason "length".
        context: what the cache holds; at most the model's own context.
        sinks: how many of the prompt's first tokens stay for good; None is all, with their pictures.
        tail: the most recent tokens that stay, by "reseed" and "shift".
        summary: by "reseed", what leaves the cache is summarised, and the summary stands behind the sinks.

    Raises:
        SettingsError: a value has the wrong type, is out of range, or does not fit the others.
    """

    policy: Policy = "reseed"
    context: int = 2048
    sinks: int | None = None
    tail: int = 256
    summary: SummaryConfig | None = None

    def __post_init__(self):
        if not isinstance(self.policy, str) or self.policy not in get_args(Policy):
            raise refusal("policy", self.policy, ", ".join(get_args(Policy)))
        integer("context", self.context, 2, _MOST)
        integer("tail", self.tail, 0, _MOST)
        if self.sinks is not None:
            integer("sinks", self.sinks, 0, _MOST)
            self.check_sinks(self.sinks)
        if self.summary is not None and not isinstance(self.summary, SummaryConfig):
            raise refusal("summary", self.summary, "a SummaryConfig, or None")
        if self.summary is not None and self.policy != "reseed":
            raise SettingsError(
                f"summary: the policy is {self.policy}; allowed: with the policy reseed alone"
            )

    def check_sinks(self, sinks: int, summary: int = 0) -> None:
        """Whether so many sinks, and a summary of so many tokens, leave room in the context.

        Raises:
            SettingsError: they do not.
        """
        kept = f"{sinks} sinks" + (f" + {summary} of the summary" if summary else "")
        if self.policy == "window" and sinks >= self.context:
            raise SettingsError(f"context: {self.context} with {kept}; allowed: more than the sinks")
        if self.policy not in ("reseed", "shift"):
            return
        if self.tail == 0 and (sinks == 0 or self.policy == "shift"):
            raise SettingsError(f"tail: 0 with {kept} and the policy {self.policy}; allowed: 1 or more")
        if sinks + summary + self.tail >= self.context:
            raise SettingsError(
                f"tail: {kept} + a tail of {self.tail} = {sinks + summary + self.tail}; "
                f"allowed: up to {self.context - 1}, one less than the context of {self.context}"
            )

    def summary_budget(self, anchor: int) -> int:
        """Tokens that a summary may have behind an anchor of so many: 0 without a summary.

        Raises:
            SettingsError: the anchor leaves none.
        """
        if self.summary is None:
            return 0
        most = int(self.context * self.summary.sink_ratio)
        if anchor >= most:
            raise SettingsError(
                f"sinks: {anchor} tokens; allowed with a summary: up to {most - 1}, one less than "
                f"{self.summary.sink_ratio:g} of the context of {self.context}; fewer sinks, a larger "
                "summary.sink_ratio or context, or no summary make it fit"
            )
        return most - anchor
