"""One stream's state machine: numbered events, one end, credit, resume, and time."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models import SettingsError
from serve.chunks import ChunkConfig, Chunker
from serve.credits import AckError
from serve.events import Delta, End, Error, Event, Start
from serve.job import Piece
from serve.rpc.convert import message_of
from serve.sse import frame
from serve.stream import MovedOnError, Stream, SupersededError
from serve.stream_rules import StreamRules

START = Start("s1", "tiny", 0, 7, 4)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(rules: StreamRules | None = None, **options) -> tuple[Stream, Clock]:
    clock = Clock()
    return Stream(START, rules, clock=clock, **options), clock


def piece(text: str, token_id: int = 5) -> Piece:
    return Piece(token_id, text, -0.5, [(token_id, -0.5), (6, -1.0)])


def events(stream: Stream, after: int = 0) -> list[Event]:
    return stream.read(stream.attach(after), after)


def texts(stream: Stream) -> list[str]:
    return [event.data.text for event in events(stream) if isinstance(event.data, Delta)]


def test_a_stream_tells_its_start_its_tokens_and_its_end():
    stream, clock = make(logprobs=True)
    clock.now += 1
    stream.prefilling()
    clock.now += 1
    stream.push(piece("a", 1))
    clock.now += 0.5
    stream.push(piece("", 2))
    stream.push(piece("b", 3))
    stream.finish("length", "c")
    told = events(stream)
    assert [event.id for event in told] == [1, 2, 3, 4, 5, 6]
    assert [event.kind for event in told] == ["start", "delta", "delta", "delta", "delta", "end"]
    deltas = [event.data for event in told if isinstance(event.data, Delta)]
    assert [(d.index, d.text, d.token_ids) for d in deltas] == [
        (0, "a", [1]),
        (1, "", [2]),
        (2, "b", [3]),
        (3, "c", []),
    ]
    assert deltas[0].logprobs is not None
    assert (deltas[0].logprobs[0].logprob, len(deltas[0].logprobs[0].top)) == (-0.5, 2)
    end = told[-1].data
    assert isinstance(end, End)
    assert (end.finish_reason, end.cause) == ("length", None)
    assert (end.usage.prompt_tokens, end.usage.image_tokens, end.usage.completion_tokens) == (7, 4, 3)
    assert (end.timings.queued, end.timings.first_token, end.timings.total) == (1.0, 2.0, 2.5)
    assert end.timings.tokens_per_second == 4.0
    assert (stream.take_gaps(), stream.take_gaps()) == ([0.5, 0.0], [])


def test_what_a_reader_holds_does_not_change_under_later_tokens():
    """A buffer or an event that was used again would."""
    stream, _ = make(logprobs=True)
    ticket, after = stream.attach(), 0
    held: list[tuple[Event, bytes, bytearray]] = []
    calls: list[tuple[Any, bytes]] = []
    for number in range(2 * stream.rules.ring):
        stream.push(piece(f"word {number}", number))
        for event in stream.read(ticket, after):
            made = frame("s1", event)
            held.append((event, made, bytearray(made)))
            calls.append((message_of(event), message_of(event).SerializeToString()))
            after = event.id or 0
        stream.drained(after)
    assert len({made for _, made, _ in held}) == len(held) == 2 * stream.rules.ring + 1
    for event, made, copied in held:
        assert made == frame("s1", event) == copied
    assert all(message.SerializeToString() == copied for message, copied in calls)


def test_an_empty_answer_is_a_proper_stream():
    stream, _ = make()
    stream.push(piece(""))
    stream.finish("stop", "")
    assert [event.kind for event in events(stream)] == ["start", "delta", "end"]


ENDINGS: dict[str, Callable[[Stream], None]] = {
    "finish": lambda stream: stream.finish("stop", "rest"),
    "fail": lambda stream: stream.fail("step_failed"),
    "cancel": lambda stream: stream.cancel(),
}


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
def test_there_is_one_end_and_nothing_behind_it(first, second):
    stream, clock = make()
    stream.push(piece("a"))
    ENDINGS[first](stream)
    told = events(stream)
    ENDINGS[second](stream)
    stream.push(piece("b"))
    clock.now += 10**6
    stream.tick()
    assert events(stream) == told
    assert [event.terminal for event in told] == [False] * (len(told) - 1) + [True]
    assert stream.heartbeat() is None


def test_an_error_has_a_code_and_shows_no_internals():
    stream, _ = make()
    stream.push(piece("a"))
    stream.fail("step_failed")
    error = events(stream)[-1].data
    assert isinstance(error, Error)
    assert (error.code, error.message) == ("step_failed", "the model failed while it was answering")
    assert error.usage.completion_tokens == 1


def test_without_backpressure_nothing_waits_for_an_ack_and_none_is_wrong():
    stream, clock = make(StreamRules(max_unacked_chunks=None, ring=4, ack_timeout=0.0))
    stream.attach()
    for _ in range(2000):
        assert stream.room(64) > 64
        stream.push(piece("a"))
    for event_id in (-1, 2, 2, 900):
        stream.ack(event_id)
    clock.now += 10
    stream.tick()
    assert (stream.closed, stream.slow, stream.stalls, stream.unacked) == (False, False, 0, 0)


def test_without_credit_there_is_no_step_and_acks_give_it_back():
    woken = []
    stream, _ = make(StreamRules(max_unacked_chunks=3), wake=lambda: woken.append(1))
    assert stream.room(2)
    assert not stream.room(3)
    for _ in range(3):
        stream.push(piece("a"))
    assert not stream.room(0)
    assert stream.heartbeat().data.phase == "paused"
    stream.ack(2)
    assert (stream.room(0), stream.room(1), woken) == (1, 0, [1])
    stream.drained(4)
    stream.drained(4)
    assert (stream.unacked, woken) == (0, [1])


@pytest.mark.parametrize("wrong", [-1, 0, 1, 2, 4, 5, 99])
def test_a_lost_double_negative_or_unknown_ack_is_an_error_and_no_credit(wrong):
    stream, _ = make(StreamRules(max_unacked_chunks=3))
    for _ in range(3):
        stream.push(piece("a"))
    stream.ack(2)
    with pytest.raises(AckError, match=f"ack: {wrong}, .*allowed: 3"):
        stream.ack(wrong)
    assert stream.unacked == 2


def test_a_program_takes_a_third_of_all_credit_at_most():
    stream, _ = make(StreamRules(max_unacked_chunks=9))
    assert [stream.room(flying) for flying in (0, 5, 6, 7, 8, 9, 10)] == [3, 3, 3, 2, 1, 0, 0]


def test_credit_that_time_takes_is_missed_too():
    """A chunk that has waited long enough takes the last of it, and no token comes to notice."""
    woken = []
    stream, clock = make(
        StreamRules(max_unacked_chunks=1),
        chunks=ChunkConfig("chunk", tokens=3, seconds=1.0),
        wake=lambda: woken.append(1),
    )
    stream.push(piece("a"))
    clock.now += 2.0
    stream.tick()
    assert not stream.room(0)
    stream.ack(2)
    assert (stream.room(0), woken, stream.stalls) == (1, [1], 1)


def test_a_long_sentence_needs_no_credit_while_it_is_held():
    stream, _ = make(StreamRules(max_unacked_chunks=1), chunks=ChunkConfig("sentence"))
    for _ in range(20):
        stream.push(piece(" word"))
        assert stream.room(0)
    stream.push(piece("."))
    stream.push(piece(" Next"))
    assert not stream.room(0)
    assert texts(stream) == [" word" * 20 + "."]


def test_a_reader_comes_back_at_any_event():
    stream, _ = make()
    for text in "ab\N{PANDA FACE}c":
        stream.push(piece(text))
    stream.finish("stop", "")
    everything = events(stream)
    for after in range(len(everything) + 1):
        assert events(stream, after) == everything[after:]
    for beyond in (-1, len(everything) + 1):
        with pytest.raises(MovedOnError):
            stream.attach(beyond)


def test_a_reader_that_comes_too_late_is_told_so():
    stream, _ = make(StreamRules(max_unacked_chunks=2, ring=6))
    ticket = stream.attach()
    for _ in range(9):
        stream.push(piece("a"))
        stream.drained(10)
    with pytest.raises(MovedOnError, match="behind 4 to 10"):
        stream.read(ticket, 3)
    assert [event.id for event in events(stream, 4)] == [5, 6, 7, 8, 9, 10]


def test_a_reader_that_comes_back_has_acknowledged_what_it_comes_back_behind():
    woken = []
    stream, _ = make(StreamRules(max_unacked_chunks=2, ring=8), wake=lambda: woken.append(1))
    for text in "ab":
        stream.push(piece(text))
    assert not stream.room(0)
    stream.attach(2)
    assert (stream.room(0), stream.unacked, woken) == (1, 1, [1])
    stream.ack(3)
    with pytest.raises(AckError, match="acknowledged already"):
        stream.ack(2)


def test_a_second_reader_takes_the_stream_over():
    stream, clock = make()
    first = stream.attach()
    second = stream.attach()
    with pytest.raises(SupersededError):
        stream.read(first, 0)
    stream.detach(first)  # which is not the reader any more
    clock.now += 100
    stream.tick()
    assert len(stream.read(second, 0)) == 1


CAUSES = {
    "disconnect": (StreamRules(grace=2.0), lambda stream: stream.detach(stream.attach()), 2.0),
    "deadline": (StreamRules(deadline=9.0), lambda stream: stream.attach(), 9.0),
    "ack_timeout": (
        StreamRules(max_unacked_chunks=1, ack_timeout=3.0),
        lambda stream: (stream.attach(), stream.push(piece("a"))),
        3.0,
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_time_cancels_what_nobody_waits_for(cause):
    rules, prepare, limit = CAUSES[cause]
    stream, clock = make(rules)
    prepare(stream)
    clock.now += limit
    stream.tick()
    assert not stream.closed
    clock.now += 0.1
    stream.tick()
    assert isinstance(stream.end, End)
    assert (stream.end.finish_reason, stream.end.cause) == ("cancelled", cause)


def test_a_slow_reader_is_known():
    stream, clock = make()
    stream.push(piece("a"))
    assert not stream.slow
    clock.now += 1.1
    assert stream.slow
    stream.ack(2)
    assert not stream.slow


def test_a_client_pauses_and_goes_on():
    woken = []
    stream, _ = make(wake=lambda: woken.append(1))
    stream.pause()
    assert (stream.room(0), stream.heartbeat().data.phase) == (0, "paused")
    stream.resume()
    assert (stream.room(0) > 0, woken) == (True, [1])


def test_while_its_row_is_renewed_an_endless_stream_says_so():
    stream, _ = make()
    stream.push(piece("a"))
    stream.reseeding()
    assert (stream.heartbeat().data.phase, stream.reseeds) == ("reseed", 1)
    stream.push(piece("b"))
    assert stream.heartbeat().data.phase == "decode"


def test_a_filter_ends_a_stream_before_what_it_forbids_is_shown():
    stream, _ = make(content_filter=lambda text: "bad" not in text)
    stream.push(piece("good"))
    stream.push(piece("bad"))
    stream.push(piece("good"))
    stream.finish("length", "")
    assert texts(stream) == ["good"]
    assert isinstance(stream.end, End)
    assert stream.end.finish_reason == "content_filter"


def test_a_filter_that_ends_a_stream_in_which_no_step_is_taken_wakes_the_engine_for_its_row():
    woken = []
    stream, clock = make(
        chunks=ChunkConfig("chunk", tokens=3, seconds=1.0),
        content_filter=lambda text: False,
        wake=lambda: woken.append(1),
    )
    stream.pause()
    stream.push(piece("bad"))
    clock.now += 1.0
    stream.tick()
    assert (stream.closed, woken) == (True, [1])


def test_a_filter_that_fails_shows_nothing():
    def broken(text: str) -> bool:
        raise RuntimeError("secret")

    stream, _ = make(content_filter=broken)
    stream.push(piece("a"))
    assert texts(stream) == []
    assert isinstance(stream.end, Error)
    assert (stream.end.code, "secret" in stream.end.message) == ("filter_failed", False)


def test_chunks_by_count_and_by_time():
    stream, clock = make(chunks=ChunkConfig("chunk", tokens=3, seconds=1.0))
    for text in "abcde":
        stream.push(piece(text))
    clock.now += 1.0
    stream.tick()
    stream.push(piece("f"))
    stream.finish("stop", "g")
    assert texts(stream) == ["abc", "de", "fg"]


def test_sentences_end_at_a_full_stop_with_a_blank_behind_it():
    chunker = Chunker(ChunkConfig("sentence"))
    words = ["It", " is", " 3", ".", "14", ".", '"', " Yes", "!", "\n", "And", " so", "。", " ", "on"]
    whole = [pieces for word in words for pieces in chunker.push(piece(word), 0.0)]
    assert ["".join(p.text for p in pieces) for pieces in [*whole, chunker.flush()]] == [
        'It is 3.14."',
        " Yes!\n",
        "And so。",
        " on",
    ]


@pytest.mark.parametrize(
    "make_wrong",
    [
        lambda: StreamRules(max_unacked_chunks=0),
        lambda: StreamRules(max_unacked_chunks=100, ring=103),
        lambda: StreamRules(grace=-1.0),
        lambda: ChunkConfig("word"),
        lambda: ChunkConfig(tokens=0),
        lambda: ChunkConfig(seconds=60.1),
    ],
)
def test_wrong_settings_are_refused(make_wrong):
    with pytest.raises(SettingsError, match="allowed"):
        make_wrong()


class Life(RuleBasedStateMachine):
    """Tokens, acks, readers that come back, pauses, cancels and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Event] = []
        self.pushed = self.acked = ""
        self.clock = Clock()
        rules = StreamRules(max_unacked_chunks=4, ring=8, ack_timeout=5.0, grace=5.0, deadline=60.0)
        self.stream = Stream(START, rules, ChunkConfig("chunk", 2, 1.0), clock=self.clock)
        self.open: list[int] = []  # deltas that were not acknowledged
        self.seen: list[Event] = []
        self.collect()
        self.ticket = self.stream.attach()

    def collect(self) -> None:
        """What was told since the last time; never more than the ring holds."""
        known = len(self.log)
        for event in self.stream._ring:
            if event.id is not None and event.id > known:
                self.log.append(event)
                if event.kind == "delta":
                    self.open.append(event.id)

    @rule(text=st.text(max_size=3))
    def push(self, text: str) -> None:
        if self.stream.room(0):
            if not self.stream.closed:
                self.pushed += text
            self.stream.push(piece(text))
            self.collect()

    @rule(number=st.integers(-3, 40))
    def ack(self, number: int) -> None:
        if self.open and number == self.open[0]:
            self.stream.ack(self.open.pop(0))
            return
        unacked = self.stream.unacked
        with pytest.raises(AckError):
            self.stream.ack(number)
        assert self.stream.unacked == unacked

    @precondition(lambda self: self.open)
    @rule()
    def ack_the_next(self) -> None:
        self.stream.ack(self.open.pop(0))

    @rule(number=st.integers(0, 40))
    def drain(self, number: int) -> None:
        number = min(number, len(self.log))
        self.stream.drained(number)
        self.open = [event for event in self.open if event > number]

    @rule(after=st.integers(-1, 60))
    def come_back(self, after: int) -> None:
        kept = len(self.log) - len(self.stream._ring)
        if not kept <= after <= len(self.log):
            with pytest.raises(MovedOnError):
                self.stream.attach(after)
            return
        former, self.ticket = self.ticket, self.stream.attach(after)
        self.open = [event for event in self.open if event > after]
        assert self.stream.read(self.ticket, after) == self.log[after:]
        with pytest.raises(SupersededError):
            self.stream.read(former, after)

    @rule()
    def read_on(self) -> None:
        kept = len(self.log) - len(self.stream._ring)
        if len(self.seen) >= kept:
            self.seen += self.stream.read(self.ticket, len(self.seen))
            assert self.seen == self.log

    @rule()
    def leave(self) -> None:
        self.stream.detach(self.ticket)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.stream.tick()
        self.collect()

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        (self.stream.pause if paused else self.stream.resume)()

    @rule(ending=st.sampled_from(sorted(ENDINGS)), often=st.integers(0, 3))
    def end(self, ending: str, often: int) -> None:
        if often == 3:  # seldom, so that lives are long
            ENDINGS[ending](self.stream)
            self.collect()

    @invariant()
    def events_are_numbered_and_end_once(self) -> None:
        assert [event.id for event in self.log] == list(range(1, len(self.log) + 1))
        assert [event.terminal for event in self.log[:-1]] == [False] * (len(self.log) - 1)
        assert self.log[-1].terminal == self.stream.closed

    @invariant()
    def all_that_was_shown_was_pushed_and_nothing_is_lost_at_the_end(self) -> None:
        shown = "".join(event.data.text for event in self.log if isinstance(event.data, Delta))
        assert (self.pushed + "rest").startswith(shown)
        if self.stream.closed:
            assert shown in (self.pushed, self.pushed + "rest")

    @invariant()
    def the_window_holds(self) -> None:
        assert self.stream.unacked == len(self.open) <= 4 + 1  # the end may flush one more


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
