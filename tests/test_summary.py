"""Summaries beside a stream: what is asked, what is made of the answer, and whatever goes wrong with it."""

import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models import load_model
from models.errors import SettingsError
from sample import SamplingConfig, StreamConfig, sample_streaming
from sample.summarizers import ModelSummarizer
from sample.summary import SummaryEncoder, SummarySidecar, points_or_text
from sample.summary_config import SummaryConfig
from sample.text import decode
from tests.test_compiles import compilations
from tests.tokenizer_fixture import IMAGE_PAD_ID, SPECIAL_TOKENS, VOCAB_SIZE, build_tokenizer

TOKENIZER = build_tokenizer()
SPECIAL_IDS = set(range(VOCAB_SIZE - len(SPECIAL_TOKENS), VOCAB_SIZE))


def ids(text: str) -> list[int]:
    return TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids


def sidecar(summarizer, budget: int = 40, timeout: float = 30.0) -> SummarySidecar:
    return SummarySidecar(summarizer, TOKENIZER, budget=budget, timeout=timeout, image_pad_id=IMAGE_PAD_ID)


def wait_for(side: SummarySidecar, events: int) -> None:
    """Until so many summaries have been told of; as a stream does, by asking again and again."""
    end = time.monotonic() + 30
    while sum(side.counts.values()) < events:
        side.take()
        assert time.monotonic() < end
        time.sleep(0.001)


def last_event(summarizer, text: str = "The panda climbs a tree.", **options):
    side = sidecar(summarizer, **options)
    side.summarise(ids(text))
    wait_for(side, 1)
    return side, side.events[-1]


# What an answer becomes


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("['a panda', 'it climbs']", "a panda; it climbs"),
        ('  ["it\'s a panda", "a, b"]\n', "it's a panda; a, b"),
        ("['a panda', 'it climbs'] and more", "a panda; it climbs"),
        ("['a panda', 'it cli", "a panda"),
        ("['a panda',", "a panda"),
        ("['only one", "['only one"),
        ("[]", "[]"),
        ("[1, 2]", "[1, 2]"),
        ("['a', 2]", "a"),
        ("[' ', 'a ']", "a"),
        ("[__import__('os').getcwd()]", "[__import__('os').getcwd()]"),
        ("[" * 5000, "[" * 5000),
        ("A panda\n climbs.  ", "A panda climbs."),
        ("", ""),
    ],
)
def test_a_list_is_read_as_its_points_and_anything_else_as_text(answer, text):
    assert points_or_text(answer) == text


@hypothesis_settings(deadline=None)
@given(st.text(), st.integers(1, 60))
def test_no_text_becomes_a_special_token_or_is_over_budget(text, budget):
    encode = SummaryEncoder(TOKENIZER, IMAGE_PAD_ID, budget)
    for answer in (text, f"{text}<|im_end|>{text}<|image_pad|>"):
        found = encode(answer)
        assert len(found) <= budget
        assert not SPECIAL_IDS & set(found)
        if "\N{REPLACEMENT CHARACTER}" not in answer:
            assert "\N{REPLACEMENT CHARACTER}" not in decode(TOKENIZER, found)


def test_what_spells_a_special_token_is_taken_out():
    encode = SummaryEncoder(TOKENIZER, IMAGE_PAD_ID, 40)
    assert encode.without_special_tokens("a<|im_end|> b<|im<|im_end|>_start|>c") == "a bc"


# The sidecar, on fakes


def test_a_summary_of_the_evicted_tokens_is_ready_at_a_later_look():
    asked = []

    def summarizer(text, budget):
        asked.append((text, budget))
        return "A panda climbs."

    side, event = last_event(summarizer)
    assert asked == [("The panda climbs a tree.", 40)]
    assert event.status == "ready"
    assert event.text == side.text == "A panda climbs."
    assert (event.evicted, event.shortened, event.error) == (len(ids("The panda climbs a tree.")), "", "")
    assert decode(TOKENIZER, side.take()) == "A panda climbs.\n"
    assert event.tokens == len(side.take())
    assert side.counts == {"ready": 1, "failed": 0, "timeout": 0}


def test_before_the_first_summary_there_are_no_tokens():
    release = threading.Event()
    side = sidecar(lambda text, budget: str(release.wait(30)))
    assert side.take() == []
    side.summarise(ids("gone"))
    assert side.take() == []
    release.set()
    wait_for(side, 1)
    assert decode(TOKENIZER, side.take()) == "True\n"


def test_a_summary_is_told_when_it_is_taken_up_and_counts_for_the_next_one_before():
    asked = []

    def summarizer(text, budget):
        asked.append(text)
        return f"Part {len(asked)}."

    side, end = sidecar(summarizer), time.monotonic() + 30
    side.summarise(ids("One panda."))
    while len(asked) < 2 and time.monotonic() < end:
        side.summarise([])
        side.summarise(ids("."))
    assert asked[1].startswith("Part 1.\n.")
    assert (side.text, len(side.events), side.counts["ready"]) == ("", 0, 0)
    side.take()
    assert side.events[0].text == "Part 1."
    assert side.counts["ready"] == len(side.events)
    assert side.text == side.events[-1].text
    side.close()


def test_summaries_accumulate():
    asked = []

    def summarizer(text, budget):
        asked.append(text)
        return f"Part {len(asked)}."

    side = sidecar(summarizer)
    for count, text in enumerate(["One panda.", "Two birds.", "A tree."], 1):
        side.summarise(ids(text))
        wait_for(side, count)
    assert asked == ["One panda.", "Part 1.\nTwo birds.", "Part 2.\nA tree."]
    assert side.text == "Part 3."


def test_what_leaves_while_a_summary_is_made_goes_into_the_next():
    release, asked = threading.Event(), []

    def summarizer(text, budget):
        asked.append(text)
        release.wait(30)
        return "So far."

    side = sidecar(summarizer)
    for text in ("One panda.", " Two birds.", " A tree."):
        side.summarise(ids(text))
    release.set()
    wait_for(side, 2)
    assert asked == ["One panda.", "So far.\n Two birds. A tree."]
    assert side.events[-1].evicted == len(ids(" Two birds.")) + len(ids(" A tree."))


def test_pictures_and_end_tokens_have_no_text_in_what_is_summarised():
    asked = []

    def summarizer(text, budget):
        asked.append(text)
        return "x"

    side = sidecar(summarizer)
    side.summarise([*ids("a"), IMAGE_PAD_ID, *sorted(SPECIAL_IDS), *ids("b")])
    wait_for(side, 1)
    assert asked == ["ab"]


class Wordy:
    """Answers with more than was asked for; briefly, if asked so, with `brief_answer`."""

    def __init__(self, brief_answer: str) -> None:
        self.brief_answer = brief_answer
        self.asked = []

    def __call__(self, text, budget):
        return "panda " * 300

    def brief(self, text, budget):
        self.asked.append((text, budget))
        return self.brief_answer


def test_over_budget_it_is_asked_again_briefly():
    wordy = Wordy("A panda.")
    _, event = last_event(wordy, budget=150)
    assert wordy.asked == [(" ".join(["panda"] * 300), 100)]
    assert (event.text, event.shortened) == ("A panda.", "brief")
    wordy = Wordy("A panda.")
    last_event(wordy, budget=20)
    assert wordy.asked[0][1] == 20


@pytest.mark.parametrize("brief_answer", ["", "panda " * 99])
def test_still_over_budget_it_is_cut(brief_answer):
    side, event = last_event(Wordy(brief_answer), budget=12)
    assert event.shortened == "cut"
    assert len(side.take()) == event.tokens <= 12
    assert ("panda " * 300).startswith(event.text)


def test_one_without_a_brief_way_is_asked_again_with_the_smaller_budget():
    asked = []

    def summarizer(text, budget):
        asked.append((len(text), budget))
        return text[: len(text) // 2]

    last_event(summarizer, "0 1 2 3 4 5 6 7 8 9 " * 60, budget=300)
    assert [budget for _, budget in asked] == [300, 100]
    assert asked[1][0] < asked[0][0]


# What goes wrong costs the summary


def raising(error):
    def summarizer(text, budget):
        raise error

    return summarizer


def failing_midway(text, budget):
    yield "A panda"
    raise RuntimeError("out of memory\nby 1 byte")


@pytest.mark.parametrize(
    ("summarizer", "error"),
    [
        (raising(RuntimeError("no memory\nat all")), "no memory"),
        (raising(KeyError()), "KeyError"),
        (raising(SystemExit(3)), "3"),
        (failing_midway, "out of memory"),
        (lambda text, budget: None, "'NoneType' object is not iterable"),
        (lambda text, budget: b"bytes", "it answered with int"),
        (lambda text, budget: "", "the summary has no text"),
        (lambda text, budget: "<|im_end|>\n<|image_pad|>", "the summary has no text"),
        (lambda text, budget: "\ud800", "surrogates not allowed"),
        (lambda: "too few arguments", "takes 0 positional arguments"),
    ],
)
def test_a_failure_is_told_and_the_summary_before_it_stays(summarizer, error):
    answers = iter([lambda text, budget: "Before.", summarizer, lambda text, budget: "Behind."])
    side = sidecar(lambda text, budget: next(answers)(*() if summarizer is None else (text, budget)))
    for count, text in enumerate(["a", "b", "c"], 1):
        side.summarise(ids(text))
        wait_for(side, count)
        if count < 3:
            assert decode(TOKENIZER, side.take()) == "Before.\n"
    assert decode(TOKENIZER, side.take()) == "Behind.\n"
    failed = side.events[1]
    assert (failed.status, failed.text, failed.tokens, failed.evicted) == ("failed", "", 0, 1)
    assert error in failed.error
    assert "\n" not in failed.error
    assert side.counts == {"ready": 2, "failed": 1, "timeout": 0}


def test_tokens_without_text_are_a_failure_and_nobody_is_asked():
    side = sidecar(raising(AssertionError("asked")))
    side.summarise([IMAGE_PAD_ID] * 4)
    wait_for(side, 1)
    assert side.events[0].error == "what left the cache has no text"


def test_one_that_hangs_is_given_up_and_not_asked_again_before_it_returns():
    release, asked = threading.Event(), []

    def summarizer(text, budget):
        asked.append(text)
        release.wait(30)
        return "late"

    side = sidecar(summarizer, timeout=0.01)
    side.summarise(ids("a"))
    wait_for(side, 1)
    assert side.events[-1].status == "timeout"
    for _ in range(5):
        side.summarise(ids("b"))
        assert side.take() == []
    assert asked == ["a"]
    assert [thread.name for thread in threading.enumerate()].count("summary") == 1
    release.set()
    end = time.monotonic() + 30
    while len(asked) < 2 and time.monotonic() < end:
        side.take()
        time.sleep(0.001)
    assert asked == ["a", "bbbbb"]
    assert side.counts["timeout"] >= 1
    side.close()


def test_one_that_answers_piece_by_piece_for_ever_is_ended_at_the_time_limit():
    ended = threading.Event()

    def summarizer(text, budget):
        try:
            while True:
                yield ""
        finally:
            ended.set()

    _, event = last_event(summarizer, timeout=0.01)
    assert event.status == "timeout"
    assert ended.wait(30)


def test_an_endless_text_is_cut():
    def summarizer(text, budget):
        while True:
            yield "panda " * 1000

    _, event = last_event(summarizer)
    assert (event.status, event.shortened) == ("ready", "cut")


def test_closing_ends_the_thread_at_its_next_piece():
    started, ended = threading.Event(), threading.Event()

    def summarizer(text, budget):
        try:
            while True:
                started.set()
                yield ""
        finally:
            ended.set()

    side = sidecar(summarizer)
    side.summarise(ids("a"))
    side.summarise(ids("b"))
    assert started.wait(30)
    side.close()
    assert ended.wait(30)
    assert side.take() == []
    side.summarise(ids("c"))
    assert side.events == type(side.events)(maxlen=side.events.maxlen)
    assert sum(side.counts.values()) == 0


def test_the_thread_is_a_daemon():
    release = threading.Event()
    side = sidecar(lambda text, budget: str(release.wait(30)))
    side.summarise(ids("a"))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "summary"]
    assert thread.daemon
    release.set()
    wait_for(side, 1)


def test_memory_is_bounded():
    release = threading.Event()
    side = sidecar(lambda text, budget: str(release.wait(30)))
    side.summarise(ids("a"))
    for _ in range(200):
        side.summarise(ids("b") * 100)
    release.set()
    wait_for(side, 2)
    assert (side.events[0].evicted, side.events[0].dropped) == (1, 0)
    assert (side.events[1].evicted, side.events[1].dropped) == (8192, 20_000 - 8192)
    assert side.events.maxlen == 256


def test_an_idle_summariser_gets_all_that_leaves_at_once():
    _, event = last_event(lambda text, budget: str(len(text)), "b" * 20_000)
    assert (event.text, event.dropped) == ("20000", 0)


def test_a_failure_that_nobody_has_looked_at_is_told_when_the_stream_ends():
    side = sidecar(raising(RuntimeError("no memory")))
    side.summarise(ids("a"))
    assert side._job is not None
    assert side._job.done.wait(30)
    side.close()
    assert [event.error for event in side.events] == ["no memory"]
    assert side.counts == {"ready": 0, "failed": 1, "timeout": 0}


# What goes wrong in a stream


def no_thread_left(thread):
    raise RuntimeError("can't start new thread")


def hanging(text, budget):
    time.sleep(0.2)
    yield "late"


@pytest.mark.parametrize(
    ("summarizer", "status", "error"),
    [
        (raising(ValueError("no idea")), "failed", "no idea"),
        (hanging, "timeout", ""),
        (lambda text, budget: "A panda.", "failed", "can't start new thread"),
    ],
)
def test_a_stream_goes_on_without_its_summaries(tiny, monkeypatch, summarizer, status, error):
    model, params, processor = tiny()
    if "thread" in error:
        monkeypatch.setattr(threading.Thread, "start", no_thread_left)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=120, ignore_eos=True)

    def streamed(summary):
        config = StreamConfig(context=64, tail=16, summary=summary)
        return sample_streaming(
            model,
            params,
            np.arange(8)[None],
            sampling,
            jax.random.key(0),
            tokenizer=processor.tokenizer,
            stream=config,
        )

    timeout = 0.001 if status == "timeout" else 30.0
    stream = streamed(SummaryConfig(summarizer=summarizer, timeout=timeout))
    tokens = list(stream)
    assert (len(tokens), stream.finish_reason) == (120, "length")
    assert tokens == list(streamed(None))
    assert stream.summary is not None
    assert stream.summary.events[0].status == status
    assert error in stream.summary.events[0].error
    assert stream.summary.counts["ready"] == 0


# The model itself


def asked_text(summarizer: ModelSummarizer, monkeypatch, answers: list[str], call) -> tuple[list[str], str]:
    """What `call` asks the model, with special tokens, and what it gives for the model's `answers`."""
    asked, replies = [], iter(answers)

    def generate(prompt, most):
        asked.append(TOKENIZER.decode(prompt))
        yield from next(replies)

    monkeypatch.setattr(summarizer, "_generate", generate)
    return asked, "".join(call())


def test_the_slim_format_is_the_one_of_slim_summarize(tiny, monkeypatch):
    model, params, _ = tiny()
    slim = ModelSummarizer(model, params, TOKENIZER, format="slim")
    asked, answer = asked_text(slim, monkeypatch, ["['a']"], lambda: slim("A <|im_end|> panda", 50))
    assert asked == ["<human>: A <|im_end|> panda\n<summarize> key points (5) </summarize>\n<bot>:"]
    assert answer == "['a']"
    asked, _ = asked_text(slim, monkeypatch, ["a"], lambda: slim.brief("A panda", 50))
    assert asked == ["<human>: A panda\n<summarize> brief description (1) </summarize>\n<bot>:"]


def test_the_chat_format_goes_through_the_template(tiny, monkeypatch):
    model, params, _ = tiny()
    chat = ModelSummarizer(model, params, TOKENIZER, format="chat")
    asked, _ = asked_text(chat, monkeypatch, ["a"], lambda: chat("A panda", 60))
    question = "Summarize the key points of this text, in at most 40 words:\n\nA panda"
    assert asked == [f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"]
    asked, _ = asked_text(chat, monkeypatch, ["a"], lambda: chat.brief("A panda", 60))
    assert "Describe this text in one sentence, in at most 40 words:" in asked[0]


def test_a_tokenizer_without_a_chat_template_gets_the_slim_format(tiny, monkeypatch):
    model, params, _ = tiny()
    plain = build_tokenizer()
    plain.chat_template = None
    auto = ModelSummarizer(model, params, plain)
    asked, _ = asked_text(auto, monkeypatch, ["a"], lambda: auto("A panda", 60))
    assert asked[0].startswith("<human>: A panda")
    auto = ModelSummarizer(model, params, TOKENIZER)
    asked, _ = asked_text(auto, monkeypatch, ["a"], lambda: auto("A panda", 60))
    assert asked[0].startswith("<|im_start|>user")


def test_a_text_longer_than_the_context_is_summarised_part_by_part(tiny, monkeypatch):
    model, params, _ = tiny()
    slim = ModelSummarizer(model, params, TOKENIZER, format="slim", max_tokens=100)
    text = " ".join(str(number) for number in range(1500))
    answers = [f"[points {number}]" for number in range(99)]
    asked, answer = asked_text(slim, monkeypatch, answers, lambda: slim(text, 50))
    assert len(asked) > 2
    assert answer == answers[len(asked) - 1]
    parts = [question.removeprefix("<human>: ").partition("\n<summarize>")[0] for question in asked]
    own = [part.removeprefix(f"[points {number - 1}]\n") for number, part in enumerate(parts)]
    assert [part == whole for part, whole in zip(own, parts, strict=True)] == [True] + [False] * (
        len(own) - 1
    )
    assert "".join(own) == text
    for question in asked:
        assert len(ids(question)) + 100 <= model.context_length


def test_answers_as_long_as_their_text_come_to_an_end(tiny, monkeypatch):
    model, params, _ = tiny()
    slim = ModelSummarizer(model, params, TOKENIZER, format="slim")
    text = "0 1 2 3 4 5 6 7 8 9 " * 300
    asked, answer = asked_text(slim, monkeypatch, [text] * 999, lambda: slim(text, 50))
    assert answer == text
    assert len(asked) < 20


def test_an_unknown_format_is_one_line(tiny):
    model, params, _ = tiny()
    with pytest.raises(SettingsError, match=r"summary\.format: got 'list'; allowed: auto, chat, slim"):
        ModelSummarizer(model, params, TOKENIZER, format="list")


@pytest.mark.slow
def test_the_model_itself_is_the_default_and_its_random_text_is_harmless(tiny):
    model, params, processor = tiny()
    side = SummarySidecar.for_stream(
        SummaryConfig(max_tokens=8), model, params, processor.tokenizer, processor.eos_ids, 30
    )
    side.summarise(ids("The image shows a panda climbing a tree."))
    wait_for(side, 1)
    event = side.events[-1]
    assert event.status == "ready" or event.error == "the summary has no text"
    assert not SPECIAL_IDS & set(side.take())
    assert len(side.take()) <= 30


def test_a_summarizer_of_ones_own_comes_before_the_model(tiny):
    model, params, processor = tiny()
    config = SummaryConfig(summarizer=lambda text, budget: f"{budget} {text}")
    side = SummarySidecar.for_stream(config, model, params, processor.tokenizer, (), 30)
    side.summarise(ids("A panda."))
    wait_for(side, 1)
    assert side.text == "30 A panda."


@pytest.mark.slow
def test_the_longest_answer_is_a_whole_text_in_few_programs(tiny):
    model, params, processor = tiny()
    summarizer = ModelSummarizer(model, params, processor.tokenizer, eos_ids=processor.eos_ids, max_tokens=9)
    first = list(summarizer("a panda", 40))
    assert 1 <= len(first) <= 10  # the pieces, and what was held back
    for text in ("a bird", "a bird and a tree " * 3):
        with compilations() as programs:
            list(summarizer(text, 40))
            list(summarizer.brief(text, 5))
        assert [name for name in programs if "decode_step" in name] == []


@pytest.mark.slow
def test_the_checkpoint_that_ships_summarises_its_own_text():
    model, params, processor = load_model("embedded")
    tokenizer = processor.tokenizer
    text = "This image shows a leafy tree and a panda in a green forest. The leafy tree is in the middle."
    side = SummarySidecar.for_stream(SummaryConfig(), model, params, tokenizer, processor.eos_ids, 120)
    side.summarise(tokenizer(text, add_special_tokens=False)["input_ids"])
    wait_for(side, 1)
    event = side.events[-1]
    assert event.status == "ready", event
    assert 1 <= event.tokens <= 120
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    assert not special & set(side.take())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("summarizer", "text"),
        ("sink_ratio", 0.0),
        ("sink_ratio", 1),
        ("sink_ratio", "0.4"),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("timeout", 0),
        ("timeout", float("nan")),
    ],
)
def test_a_wrong_setting_is_one_line(field, value):
    with pytest.raises(SettingsError, match=rf"summary\.{field}: got .*; allowed: ") as caught:
        SummaryConfig(**{field: value})
    assert "\n" not in str(caught.value)


def test_the_settings_are_hashable_and_hold_numpy_numbers():
    assert len({SummaryConfig(), SummaryConfig()}) == 1
    assert SummaryConfig(sink_ratio=np.float32(0.5)).sink_ratio == 0.5
