"""SamplingConfig: what it accepts, how it keeps it, and the one line that refuses the rest."""

import dataclasses
import math

import numpy as np
import pytest

from models.errors import SettingsError
from sample.config import SamplingConfig


def test_defaults_change_nothing():
    config = SamplingConfig()
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (1.0, 0, 1.0, 0.0)
    assert (config.eos_id, config.stop, config.logprobs, config.seed) == ((), (), "raw", None)


def test_values_are_kept_in_one_form():
    config = SamplingConfig(
        temperature=1, top_k=np.int64(5), eos_id=7, stop="\n\n", logit_bias={9: 1, 2: -100}, seed=2**32 - 1
    )
    assert isinstance(config.temperature, float)
    assert type(config.top_k) is int
    assert config.eos_ids == config.eos_id == (7,)
    assert config.stop == ("\n\n",)
    assert config.logit_bias == ((2, -100.0), (9, 1.0))
    assert SamplingConfig(eos_id=[1, np.int32(2)], stop=["a", "b"]).eos_ids == (1, 2)
    assert SamplingConfig(eos_id={1}, stop={"a"}).eos_ids == (1,)
    assert SamplingConfig(no_repeat_ngram_exempt=np.int32(4)).no_repeat_ngram_exempt == (4,)


def test_is_frozen_hashable_and_replaceable():
    config = SamplingConfig(logit_bias={1: 2.0}, stop=["x"], eos_id=[3])
    assert hash(config) == hash(SamplingConfig(logit_bias={1: 2.0}, stop="x", eos_id=3))
    assert dataclasses.replace(config, top_k=4).logit_bias == config.logit_bias
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"temperature": -0.1}, "temperature: got -0.1; allowed: 0 (greedy) or a number from 1e-06 to 1e+06"),
        (
            {"temperature": 1e-9},
            "temperature: got 1e-09; allowed: 0 (greedy) or a number from 1e-06 to 1e+06",
        ),
        ({"temperature": True}, "temperature: got True"),
        ({"temperature": "0.7"}, "temperature: got '0.7'"),
        ({"temperature": None}, "temperature: got None"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"temperature": math.inf}, "temperature: got inf"),
        ({"top_k": -1}, "top_k: got -1; allowed: an integer from 0 to 2147483647"),
        ({"top_k": 1.0}, "top_k: got 1.0"),
        ({"top_k": True}, "top_k: got True"),
        ({"top_k": 2**31}, "top_k: got 2147483648"),
        ({"top_p": 0}, "top_p: got 0; allowed: a number above 0, at most 1"),
        ({"top_p": 1.01}, "top_p: got 1.01"),
        ({"top_p": math.nan}, "top_p: got nan"),
        ({"min_p": 1.5}, "min_p: got 1.5; allowed: a number from 0 to 1"),
        ({"min_p": -0.1}, "min_p: got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: got 0; allowed: a number from 0.01 to 100"),
        ({"presence_penalty": 2.1}, "presence_penalty: got 2.1; allowed: a number from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty: got -3"),
        ({"logit_bias": {1: 101}}, "logit_bias[1]: got 101; allowed: a number from -100 to 100"),
        ({"logit_bias": {-1: 1}}, "logit_bias: got -1"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: got '5'"),
        ({"logit_bias": {True: 1.0}}, "logit_bias: got True"),
        (
            {"logit_bias": 5},
            "logit_bias: got 5; allowed: a mapping from token id to a number from -100 to 100",
        ),
        ({"logit_bias": [1, 2]}, "logit_bias: got [1, 2]"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0; allowed: an integer from 1"),
        ({"eos_id": -1}, "eos_id: got -1"),
        ({"eos_id": None}, "eos_id: got None; allowed: a token id or a sequence of token ids"),
        ({"eos_id": "5"}, "eos_id: got '5'"),
        ({"eos_id": [1, 2.0]}, "eos_id: got 2.0"),
        ({"eos_id": np.array(5)}, "eos_id: got array(5)"),
        ({"stop": np.array("x")}, "stop: got array('x'"),
        ({"logprobs": np.array(["raw", "raw"])}, "logprobs: got array(['raw'"),
        ({"pad_id": None}, "pad_id: got None"),
        ({"stop": ""}, "stop: got ''; allowed: a non-empty string or a sequence of them"),
        ({"stop": ["a", ""]}, "stop: got ['a', '']"),
        ({"stop": 3}, "stop: got 3"),
        ({"stop": b"x"}, "stop: got b'x'"),
        ({"logprobs": "none"}, "logprobs: got 'none'; allowed: raw or processed"),
        ({"logprobs": ["raw"]}, "logprobs: got ['raw']"),
        ({"top_logprobs": 21}, "top_logprobs: got 21; allowed: an integer from 0 to 20"),
        (
            {"no_repeat_ngram_size": 1},
            "no_repeat_ngram_size: got 1; allowed: 0 (off) or an integer from 2 to 32",
        ),
        ({"no_repeat_ngram_size": 33}, "no_repeat_ngram_size: got 33"),
        ({"no_repeat_ngram_size": False}, "no_repeat_ngram_size: got False"),
        ({"no_repeat_ngram_threshold": 0}, "no_repeat_ngram_threshold: got 0; allowed: an integer from 1"),
        (
            {"no_repeat_ngram_window": 63},
            "no_repeat_ngram_window: got 63; allowed: an integer from 64 to 65536",
        ),
        ({"no_repeat_ngram_exempt": [-1]}, "no_repeat_ngram_exempt: got -1"),
        (
            {"max_pattern_repeats": 1},
            "max_pattern_repeats: got 1; allowed: 0 (off) or an integer from 2 to 1000",
        ),
        ({"max_pattern_repeats": -2}, "max_pattern_repeats: got -2"),
        ({"ignore_eos": 1}, "ignore_eos: got 1; allowed: True or False"),
        ({"seed": -1}, "seed: got -1; allowed: an integer from 0 to 4294967295"),
        ({"seed": 2**32}, "seed: got 4294967296"),
    ],
)
def test_a_wrong_value_is_one_line(setting, line):
    with pytest.raises(SettingsError) as caught:
        SamplingConfig(**setting)
    message = str(caught.value)
    assert message.startswith(line)
    assert "allowed: " in message
    assert "\n" not in message


def test_a_long_value_is_cut_short():
    with pytest.raises(SettingsError) as caught:
        SamplingConfig(stop={"x" * 500: 1})  # pyright: ignore[reportArgumentType]
    assert len(str(caught.value)) < 200


GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [1, 2]}


def test_from_generation_takes_the_checkpoint_s_defaults():
    config = SamplingConfig.from_generation(GENERATION)
    assert (config.temperature, config.top_p, config.top_k, config.eos_id) == (0.7, 0.8, 20, ())
    assert SamplingConfig.from_generation({}) == SamplingConfig()


def test_overrides_win_and_none_is_not_given():
    config = SamplingConfig.from_generation(GENERATION | {"min_p": None}, temperature=0.2, top_k=None, seed=3)
    assert (config.temperature, config.top_k, config.seed, config.min_p) == (0.2, 20, 3, 0.0)


def test_do_sample_false_is_greedy_unless_a_temperature_is_chosen():
    greedy = GENERATION | {"do_sample": False}
    assert SamplingConfig.from_generation(greedy).temperature == 0
    assert SamplingConfig.from_generation(greedy, temperature=0.5).temperature == 0.5


def test_from_generation_refuses_what_is_wrong():
    with pytest.raises(
        SettingsError, match=r"^temprature: unknown sampling setting; did you mean temperature\?"
    ):
        SamplingConfig.from_generation({}, temprature=1.0)
    with pytest.raises(SettingsError, match=r"^top_p: got 7"):
        SamplingConfig.from_generation({"top_p": 7})
