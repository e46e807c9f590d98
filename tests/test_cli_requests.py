"""Which pictures go with which prompt, and how a batch's answers are told apart."""

import json
from pathlib import Path

import numpy as np
import pytest

from cli.answers import batch_summary, rows_of
from cli.output import JsonWriter, TextWriter
from cli.requests import Request, batch_requests, single_request
from cli.typed import UsageError
from conf.schema import InferenceSettings
from sample import SampleResult, VLMInputs


@pytest.fixture
def pictures(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_every_picture_of_a_directory_goes_with_every_prompt(pictures):
    requests = batch_requests(InferenceSettings(image=[str(pictures)], prompts=["one", "two"]))
    assert requests == [
        Request((str(pictures / name),), prompt) for name in ("a.JPG", "b.png") for prompt in ("one", "two")
    ]
    assert [request.header() for request in requests][:2] == ["a.JPG | one", "a.JPG | two"]


def test_listed_pictures_belong_to_one_prompt(pictures):
    images = [str(pictures / "b.png"), str(pictures / "a.JPG")]
    settings = InferenceSettings(image=images, prompt="one")
    assert batch_requests(settings) == [Request(tuple(images), "one")] == [single_request(settings)]


def test_no_picture_is_text_alone():
    assert single_request(InferenceSettings(prompt="")) == Request((), "")


def test_a_file_has_a_prompt_on_each_line(tmp_path):
    file = tmp_path / "prompts"
    file.write_bytes("\ufeffone, 'two'\r\n\r\n  \nthree\n".encode())
    requests = batch_requests(InferenceSettings(prompts_file=str(file)))
    assert [request.prompt for request in requests] == ["one, 'two'", "three"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\n", None])
def test_a_file_without_prompts_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)  # the message shortens a long path
    if content is not None:
        Path("prompts").write_bytes(content)
    with pytest.raises(UsageError, match=r"^inference\.prompts_file: .*prompts'"):
        batch_requests(InferenceSettings(prompts_file="prompts"))


def test_two_sources_of_prompts_are_refused():
    with pytest.raises(UsageError, match="not together"):
        batch_requests(InferenceSettings(prompts=["one"], prompts_file="x"))


@pytest.mark.parametrize(
    "settings",
    [InferenceSettings(prompts=["one"]), InferenceSettings(prompts_file="x")],
    ids=["list", "file"],
)
def test_a_stream_takes_one_prompt(settings):
    with pytest.raises(UsageError, match="one prompt"):
        single_request(settings)


def test_rows_lose_their_padding():
    result = SampleResult(
        np.array([[5, 6, 9], [5, 0, 0]], np.int32),
        np.array([[-1, -2, -3], [-0.5, 0, 0]], np.float32),
        ["ab", "a"],
        ["length", "stop"],
        np.array([3, 2], np.int32),
        [[[(5, -1.0)], [(6, -2.0)], [(9, -3.0)]], [[], []]],
    )
    rows = rows_of([Request((), "x"), Request((), "y")], result)
    assert [row["token_ids"] for row in rows] == [[5, 6, 9], [5, 0]]
    assert [row["logprobs"] for row in rows] == [[-1, -2, -3], [-0.5, 0]]  # a certain end token is no padding
    assert rows[0]["top_logprobs"] == [[(5, -1.0)], [(6, -2.0)], [(9, -3.0)]]
    assert "top_logprobs" not in rows[1]
    mask = np.array([[True, True], [True, False]])
    inputs = VLMInputs(np.array([[1, 7], [1, 7]]), None, np.zeros((0, 3), np.int32), 7, mask)
    summary = batch_summary(rows, inputs, 2.0)
    assert (summary["prompt_tokens"], summary["image_tokens"]) == (3, 1)
    assert (summary["new_tokens"], summary["tokens_per_second"]) == (5, 2.5)


def test_text_rows_have_headers_where_there_are_several(capsys):
    TextWriter().row(None, {"text": "alone"})
    TextWriter().row("a.png | x", {"text": "one of two"})
    assert capsys.readouterr().out == "alone\n== a.png | x\none of two\n\n"


def test_json_stays_json_whatever_the_numbers_and_the_text(capsys):
    JsonWriter().row(None, {"text": "a\u2028\n🐼", "logprobs": [np.float32(0.5), float("-inf"), np.int32(3)]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {"event": "answer", "text": "a\u2028\n🐼", "logprobs": [0.5, None, 3]}


def test_text_held_back_is_delivered_when_a_stream_is_cut(capsys):
    JsonWriter().close("held", {"finish_reason": "cancelled"})
    assert json.loads(capsys.readouterr().out) == {
        "event": "end",
        "rest": "held",
        "finish_reason": "cancelled",
    }
