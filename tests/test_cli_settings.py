"""What the commands make of their command line, before anything is loaded."""

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.help import help_text
from cli.settings import fields_by_key, parse_settings
from cli.typed import UsageError
from conf.schema import Dtype, Format, Policy, Range, StreamSettings, default_of
from models.errors import SettingsError
from sample import SamplingConfig

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
AWKWARD = [
    "What's in this photo?",
    "a, b = [c] {d} (e) \"f\" 'g' ${h} \\i",
    "null",
    "42",
    "true",
    "",
    " ",
    "[a, b]",
    "{a: b}",
    "???",
    "${oc.env:HOME}",
    "line one\nline two\ttab\\n",
    "日本語 🐼 é",
    "inference.prompt=x",
    "--help me",
    "~x",
]


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_settings(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("key", ["prompt", "system"])
def test_a_text_arrives_as_typed(key, text):
    parsed = parse_settings([f"inference.{key}={text}", "sampling.top_k=3"])
    assert getattr(parsed.inference, key) == text
    assert parsed.sampling.top_k == 3


@settings(max_examples=10, deadline=None)
@given(TEXT)
def test_any_text_arrives_as_typed(text):
    assert parse_settings([f"inference.prompt={text}"]).inference.prompt == text


@settings(max_examples=10, deadline=None)
@given(st.lists(TEXT))
def test_a_json_list_holds_any_texts(texts):
    parsed = parse_settings([f"inference.prompts={json.dumps(texts)}", f"sampling.stop={json.dumps(texts)}"])
    assert parsed.inference.prompts == texts
    assert parsed.sampling.stop == texts


@settings(max_examples=10, deadline=None)
@given(TEXT.filter(lambda path: path != "null" and not path.startswith("[")))
def test_a_path_arrives_as_typed(path):
    parsed = parse_settings([f"inference.image={path}", f"model.name={path}"])
    assert parsed.inference.image == [path]
    assert parsed.model.name == path


@pytest.mark.parametrize(
    ("value", "images"),
    [
        ("[a.png,b.png]", ["a.png", "b.png"]),
        ("[a b.png, it's.png]", ["a b.png", "it's.png"]),
        ('["a,b.png","c.png"]', ["a,b.png", "c.png"]),
        ("[1,2]", ["1", "2"]),
        ("[]", []),
        ("null", []),
        ("[a].png", ["[a].png"]),
        ("./[a]", ["./[a]"]),
    ],
)
def test_lists_of_pictures(value, images):
    assert parse_settings([f"inference.image={value}"]).inference.image == images


@pytest.mark.parametrize(
    ("command", "image", "prompt", "sampling"),
    [
        (
            'inference.image=examples/imgs/coffee_laptop.png inference.prompt="What\'s in this photo?"',
            "coffee_laptop",
            "What's in this photo?",
            {},
        ),
        (
            "inference.image=examples/imgs/panda_climbing.png"
            ' inference.prompt="Write a story about this image"'
            " sampling.temperature=0.9 sampling.max_new_tokens=256",
            "panda_climbing",
            "Write a story about this image",
            {"temperature": 0.9, "max_new_tokens": 256},
        ),
        (
            'inference.image=examples/imgs/stadium_aerial.png inference.prompt="What do you see?"'
            " sampling.temperature=0.3 sampling.top_p=0.8",
            "stadium_aerial",
            "What do you see?",
            {"temperature": 0.3, "top_p": 0.8},
        ),
    ],
)
def test_commands_as_a_shell_hands_them_over(command, image, prompt, sampling):
    parsed = parse_settings(shlex.split(command))
    assert parsed.inference.image == [f"examples/imgs/{image}.png"]
    assert parsed.inference.prompt == prompt
    assert {name: getattr(parsed.sampling, name) for name in sampling} == sampling


def test_a_path_may_hold_bytes_that_are_no_utf8_but_a_prompt_may_not():
    assert parse_settings(["inference.image=\udcff.png"]).inference.image == ["\udcff.png"]
    assert "UTF-8" in refusal("inference.prompt=\udcff")
    assert "UTF-8" in refusal('inference.prompts=["\\ud800"]')


def test_values_are_typed():
    parsed = parse_settings(
        [
            "sampling.temperature=0.9",
            "sampling.max_new_tokens=256",
            "sampling.logit_bias={7:-5,9:2.5}",
            "sampling.eos_id=[3,4]",
            "model.dtype=bfloat16",
            "output=jsonl",
        ]
    )
    assert parsed.sampling.temperature == 0.9
    assert parsed.sampling.max_new_tokens == 256
    assert parsed.sampling.logit_bias == {7: -5.0, 9: 2.5}
    assert parsed.sampling.eos_id == [3, 4]
    assert parsed.model.dtype is Dtype.bfloat16
    assert parsed.output.format is Format.jsonl


def test_an_output_and_a_plot_go_together_in_any_order():
    for argv in (["output=jsonl", "output.plot=a, b.png"], ["output.plot=a, b.png", "output=jsonl"]):
        output = parse_settings(argv).output
        assert (output.format, output.plot) == (Format.jsonl, "a, b.png")
    assert parse_settings(["output=jsonl", "output=text"]).output.format is Format.text


def test_a_stream_is_endless_when_asked():
    assert parse_settings([]).stream == StreamSettings()
    assert parse_settings(["stream=stop"]).stream.policy is Policy.stop
    parsed = parse_settings(
        ["stream.policy=shift", "stream=endless", "stream.summary.model=a, b", "stream.summary.enabled=false"]
    ).stream
    assert parsed.policy is Policy.shift
    assert (parsed.context, parsed.sinks, parsed.tail) == (None, None, 256)
    assert (parsed.summary.model, parsed.summary.enabled) == ("a, b", False)
    assert parse_settings(["stream=endless"]).stream.policy is Policy.reseed


def test_of_two_values_the_last_holds():
    parsed = parse_settings(
        ["sampling.top_k=1", "inference.prompt=a", "sampling.top_k=2", "inference.prompt=b"]
    )
    assert (parsed.sampling.top_k, parsed.inference.prompt) == (2, "b")


def test_a_single_setting_overrides_the_preset():
    assert parse_settings(["sampling=greedy"]).sampling.temperature == 0
    for argv in (
        ["sampling=greedy", "sampling.temperature=0.5"],
        ["sampling.temperature=0.5", "sampling=greedy"],
    ):
        assert parse_settings(argv).sampling.temperature == 0.5


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("sampling.temprature=0.5", "sampling.temperature"),
        ("temperature=0.5", "sampling.temperature"),
        ("inference.promt=x", "inference.prompt"),
        ("prompt=x", "inference.prompt"),
        ("--image=x", "inference.image"),
        ("+sampling.top_k=3", "sampling.top_k"),
        ("++sampling.top_k=3", "sampling.top_k"),
        ("~sampling.top_k", "sampling.top_k"),
        ("model=x", "model.name"),
        ("outptu=jsonl", "output"),
        ("straem=endless", "stream"),
        ("stream.summary=false", "stream.summary.enabled"),
        ("output.plt=a.png", "output.plot"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(argument, nearest):
    message = refusal(argument)
    assert repr(argument.partition("=")[0]) in message
    assert f"nearest key: {nearest};" in message


@pytest.mark.parametrize(
    "argument", ["hydra.run.dir=x", "defaults=[]", "=3", "", "word", "--multirun", "sampling.top_k.x=3"]
)
def test_what_is_no_setting_is_refused(argument):
    assert repr(argument.partition("=")[0]) in refusal(argument)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("sampling.temperature", "hot", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "-1", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "nan", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "inf", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "0.1,0.2", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "it's", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "${x}", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "true", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.temperature", "1e-9", "a number 0 or >= 1e-06 and <= 1000000 (0: greedy)"),
        ("sampling.top_k", "2147483648", "an integer >= 0 and <= 2147483647"),
        ("sampling.max_new_tokens", "2147483648", "an integer >= 1 and <= 2147483647"),
        ("sampling.logit_bias", "{-1:2}", "each id >= 0 and <= 2147483647, each bias >= -100"),
        ("sampling.top_k", "3.5", "an integer >= 0"),
        ("sampling.top_k", "\n3", "an integer >= 0"),
        ("sampling.top_p", "0", "> 0 and <= 1"),
        ("sampling.top_p", "1.5", "> 0 and <= 1"),
        ("sampling.seed", "null", "an integer >= 0"),
        ("sampling.max_new_tokens", "0", "an integer >= 1"),
        ("sampling.logit_bias", "{a:1}", "{token_id:bias,...}"),
        ("sampling.logit_bias", "{1:nan}", "{token_id:bias,...}"),
        ("sampling.eos_id", "[-1]", "a list [id,...]"),
        ("sampling.logprobs", "both", "raw or processed"),
        ("sampling", "hot", "checkpoint, greedy"),
        ("sampling", "{top_k:3}", "checkpoint, greedy"),
        ("model.dtype", "float8", "float32, bfloat16, float16"),
        ("output", "xml", "text, jsonl"),
        ("output.format", "xml", "text, or jsonl"),
        ("stream", "forever", "stop, endless"),
        ("stream.policy", "evict", "stop, reseed, shift or window"),
        ("stream.context", "1", "an integer >= 2"),
        ("stream.tail", "-1", "an integer >= 0"),
        ("stream.sinks", "-4", "or null: the whole prompt"),
        ("stream.summary.enabled", "maybe", "true, false, or null"),
        ("stream.summary.sink_ratio", "1", "<= 0.99"),
        ("stream.summary.format", "list", "chat"),
        ("stream.summary.max_tokens", "0", "an integer >= 1"),
        ("stream.summary.timeout", "0", "a number >= 0.001"),
        ("sampling.no_repeat_ngram_size", "1", "0 or >= 2 and <= 32 (0: off)"),
        ("sampling.max_pattern_repeats", "1", "0 or >= 2 and <= 1000 (0: off)"),
        ("sampling.ignore_eos", "perhaps", "true, false, or null"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, allowed):
    message = refusal("sampling.min_p=0.1", f"{key}={value}")
    assert message.startswith(f"{key}: got {value!r}")
    assert allowed in message


def test_a_key_without_value_is_refused():
    assert refusal("inference.prompt").startswith("inference.prompt: got no value")


def test_a_list_in_single_quotation_marks_is_refused():
    assert "JSON" in refusal("sampling.stop=['a','b']")


def test_the_ranges_are_those_of_sampling_config():
    """An edge is accepted and the next number beyond is not: in the schema, and by the code that samples."""
    edges = 0
    for key, entry in fields_by_key().items():
        limits, name = entry.metadata["limits"], key.rpartition(".")[2]
        if not key.startswith("sampling.") or not isinstance(limits, Range) or limits == Range():
            continue
        wrap = {"logit_bias": lambda number: {1: number}, "eos_id": lambda number: [number]}.get(
            name, lambda number: number
        )
        for edge, outside in ((limits.low, limits.low - 1), (limits.high, limits.high + 1)):
            if abs(edge) == float("inf"):
                continue
            whole = edge == int(edge)
            convert = int if whole and "integer" in entry.metadata["allowed"] else float
            assert outside not in limits
            with pytest.raises(SettingsError, match=name):
                SamplingConfig(**{name: wrap(convert(outside))})
            if edge in limits:
                SamplingConfig(**{name: wrap(convert(edge))})
            edges += 1
    assert edges >= 15


def test_defaults_of_sampling_config_hold_where_nothing_is_said():
    sampling = parse_settings([]).sampling
    said = {name for name, value in vars(sampling).items() if value not in (None, [], {})}
    assert said == {"logprobs", "top_logprobs", "seed"}


def test_help_lists_every_setting_with_its_default_and_meaning():
    text = " ".join(help_text("run.py", "purpose").split())
    fields = fields_by_key()
    assert len(fields) >= 24
    for key, entry in fields.items():
        assert f" {key}=" in text
        assert entry.metadata["help"] in text
        assert entry.metadata["allowed"] in text
    assert "model.name=embedded" in text
    assert "sampling.seed=42" in text
    assert default_of(fields["sampling.stop"]) == []
