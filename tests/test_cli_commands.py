"""The real commands on a tiny checkpoint: what they print, where, and how they end."""

import fcntl
import json
import os
import pty
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forks
from tests.commands import ROOT, environment, run, start
from tests.tiny import tiny_checkpoint

LONG = ["output=jsonl", "sampling.eos_id=[]", "sampling.max_new_tokens=150"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, pictures, and an empty directory to run in."""
    folder = tmp_path_factory.mktemp("commands")
    tiny_checkpoint(folder / "tiny")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for name, shape in (("a", (64, 96, 3)), ("it's, b", (96, 64, 3))):
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{name}.png")
    (folder / "cwd").mkdir()
    return folder


def started(place: Path, env: dict[str, str], script: str, *arguments: str, start=forks.start, **options):
    return start(script, f"model.name={place / 'tiny'}", *arguments, cwd=place / "cwd", env=env, **options)


def finished(
    place: Path, env: dict[str, str], script: str, *arguments: str, run=forks.run
) -> tuple[int, str, str]:
    return run(script, f"model.name={place / 'tiny'}", *arguments, cwd=place / "cwd", env=env)


def small_pipe() -> tuple[int, int]:
    """A pipe that holds one page, so that a writer soon waits for its reader."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


@pytest.fixture(scope="module")
def streamed(place):
    """A first start: (its arguments, status, standard output, standard error, the cache's files)."""
    arguments = ["inference.prompt=What's in this photo?", "sampling.max_new_tokens=12"]
    image = f"inference.image={place / 'pictures' / 'a.png'}"
    env = environment(place / "cache")
    status, out, notes = finished(place, env, "run_streaming.py", image, *arguments, run=run)
    return [image, *arguments], status, out, notes, programs(place)


def programs(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "cache" / "saccade" / "jax").iterdir())


def test_tokens_go_to_standard_output_and_the_rest_to_standard_error(place, streamed):
    _, status, text, notes, _ = streamed
    assert status == 0, notes
    assert text.endswith("\n")
    assert "device: cpu (" in notes
    assert re.search(r"loaded \d\.\d MB in ", notes)
    closing = notes.splitlines()[-1]
    for part in ("finish: ", "of pictures)", "new: ", "first token:", "tokens/s", "p99"):
        assert part in closing
    assert list((place / "cwd").iterdir()) == []


@pytest.mark.slow
def test_the_second_start_compiles_nothing(place, streamed):
    arguments, _, text, notes, kept = streamed
    assert "compiled 0 of" not in notes.splitlines()[-1]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env = environment(place / "cache", **ascii_only)
    status, again, notes = finished(place, env, "run_streaming.py", *arguments, run=run)
    assert (status, again) == (0, text)
    assert "compiled 0 of" in notes.splitlines()[-1]
    assert len(kept) > 0
    assert programs(place) == kept


@pytest.mark.slow
def test_a_directory_is_one_batch_and_each_row_is_what_streaming_gives(place, env, streamed):
    (_, *arguments), _, text, _, _ = streamed
    directory = f"inference.image={place / 'pictures'}"
    status, out, notes = finished(place, env, "run.py", directory, *arguments, "output=jsonl")
    assert status == 0, notes
    *rows, summary = map(json.loads, out.splitlines())
    assert [Path(row["images"][0]).name for row in rows] == ["a.png", "it's, b.png"]
    assert [row["event"] for row in (*rows, summary)] == ["answer", "answer", "end"]
    assert rows[0]["text"] + "\n" == text
    assert summary["new_tokens"] == sum(len(row["token_ids"]) for row in rows)
    assert summary["finish_reasons"] == [row["finish_reason"] for row in rows]


@pytest.mark.slow
def test_rows_draw_each_their_own_and_a_single_row_is_the_stream(place, env):
    settings = ["sampling.temperature=1.5", "sampling.max_new_tokens=12", "sampling.top_logprobs=2"]
    settings += ["sampling.eos_id=[]", "output=jsonl"]
    prompts = ["inference.prompts=[hello,hello,hello]", "inference.prompt=hello", "inference.prompt=hello"]
    answers = []
    for script, asked in zip(["run.py", "run.py", "run_streaming.py"], prompts, strict=True):
        status, out, notes = finished(place, env, script, asked, *settings)
        assert status == 0, notes
        answers.append([json.loads(line) for line in out.splitlines()[:-1]])
    batch, [alone], [_, *stream] = answers
    assert len({tuple(row["token_ids"]) for row in batch}) == 3
    assert batch[0]["token_ids"] == alone["token_ids"] == [token["token_id"] for token in stream]
    assert alone["top_logprobs"] == [token["top_logprobs"] for token in stream]
    assert alone["logprobs"] == [token["logprob"] for token in stream]


def test_jsonl_has_an_object_per_token_and_the_statistics_at_the_end(place, env):
    status, out, notes = finished(
        place,
        env,
        "run_streaming.py",
        "inference.prompt=<|image_pad|>",  # plain text, and no picture's slot
        "output=jsonl",
        "sampling=greedy",
        "sampling.top_logprobs=2",
        "sampling.eos_id=[]",
        "sampling.max_new_tokens=5",
    )
    assert status == 0, notes
    assert out.isascii()
    begun, *tokens, summary = map(json.loads, out.splitlines())
    assert begun["event"] == "start"
    assert (begun["policy"], begun["prompt_tokens"]) == ("stop", summary["prompt_tokens"])
    assert [token["index"] for token in tokens] == list(range(5))
    for token in tokens:
        assert set(token) == {"event", "index", "token_id", "text", "logprob", "surprisal", "top_logprobs"}
        assert token["event"] == "token"
        assert token["surprisal"] == -token["logprob"]
        assert token["top_logprobs"][0] == [token["token_id"], pytest.approx(token["logprob"])]
    assert summary["event"] == "end"
    assert summary["perplexity"] == pytest.approx(np.exp(np.mean([token["surprisal"] for token in tokens])))
    assert summary["new_tokens"] == 5
    assert summary["finish_reason"] == "length"
    assert summary["image_tokens"] == 0
    assert summary["time_to_first_token"] > 0


@pytest.mark.slow
def test_a_closed_pipe_ends_it_quietly(place, env):
    reader, writer = small_pipe()
    process = started(place, env, "run_streaming.py", *LONG, stdout=writer, start=start)
    os.close(writer)
    assert len(os.read(reader, 10)) == 10
    os.close(reader)
    _, notes = process.communicate(timeout=120)
    assert process.returncode == 141
    assert notes.decode().splitlines()[-1].startswith("compiling")


def test_ctrl_c_ends_a_stream_with_its_statistics(place, env):
    reader, writer = small_pipe()
    process = started(place, env, "run_streaming.py", *LONG, stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        output.readline()
        first = output.readline()  # the command now waits for its reader, far from the end
        process.send_signal(signal.SIGINT)
        *tokens, summary = map(json.loads, [first, *output])
    _, notes = process.communicate(timeout=120)
    assert process.returncode == 130
    assert summary["finish_reason"] == "cancelled"
    assert summary["new_tokens"] == len(tokens) < 150
    assert f"finish: cancelled | prompt: {summary['prompt_tokens']} tokens" in notes.decode()


@pytest.mark.slow
def test_ctrl_c_ends_a_batch_with_what_it_has(place, env):
    interrupted = f"""
import os, runpy, signal, sys, threading
sys.path.insert(0, {str(ROOT)!r})
import sample.batch
from cli.interrupts import Interrupts
noticed, answer, steps = threading.Event(), Interrupts._interrupt, sample.batch.decode_steps
def answering(interrupts):
    answer(interrupts)
    noticed.set()
def interrupting(*arguments, **options):
    made = steps(*arguments, **options)
    os.kill(os.getpid(), signal.SIGINT)
    assert noticed.wait(60)
    return made
Interrupts._interrupt, sample.batch.decode_steps = answering, interrupting
runpy.run_path("{ROOT / "run.py"}", run_name="__main__")
"""
    status, out, notes = finished(place, env, interrupted, "inference.prompts=[a,b]", *LONG)
    assert status == 130, notes
    *rows, summary = map(json.loads, out.splitlines())
    assert [len(row["token_ids"]) for row in rows] == [65, 65]
    assert all(row["text"] for row in rows)
    assert summary["finish_reasons"] == ["cancelled", "cancelled"]
    assert "finish: 2 cancelled | " in notes.splitlines()[-1]


@pytest.mark.parametrize("script", ["run.py", "run_streaming.py"])
def test_ctrl_c_while_loading_ends_it_at_once(place, env, script):
    process = started(place, env, script, start=start)
    assert process.stderr is not None
    assert process.stderr.readline() == b"starting ...\n"
    process.send_signal(signal.SIGINT)
    out, notes = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == b""
    assert notes.decode().strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in notes.decode()


def test_a_failure_in_mid_stream_delivers_what_was_made(place, env):
    broken = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from sample.streaming import TokenStream
whole = TokenStream._next_outputs
def failing(stream, request):
    if stream.stats.new_tokens >= 3:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\\nallocating 1 byte")
    return whole(stream, request)
TokenStream._next_outputs = failing
runpy.run_path("{Path(__file__).parents[1] / "run_streaming.py"}", run_name="__main__")
"""
    status, out, notes = finished(place, env, broken, *LONG)
    assert status == 1
    _, *tokens, summary = map(json.loads, out.splitlines())
    assert len(tokens) == summary["new_tokens"] >= 3
    assert summary["finish_reason"] == "error"
    assert notes.splitlines()[-1] == "error: RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"
    assert "Traceback" not in notes


def test_a_full_disk_is_one_line(place, env):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "wb") as full:
        process = started(place, env, "run_streaming.py", "sampling.max_new_tokens=2", stdout=full)
        _, notes = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No space left" in notes.decode().splitlines()[-1]
    assert "Traceback" not in notes.decode()


def test_a_terminal_shows_progress_and_the_tokens_stay_plain(place, env):
    ours, theirs = pty.openpty()
    process = started(place, env, "run_streaming.py", "sampling.max_new_tokens=3", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"\x1b" not in out
    assert b"\x1b[" in shown
    assert b"finish: length" in shown.splitlines()[-1]
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_an_unwritable_cache_is_no_failure_of_its_own(place):
    (place / "file").write_text("not a folder")
    _, _, notes = run("run.py", "model.name=none", cwd=place / "cwd", env=environment(place / "file"))
    assert notes.splitlines()[0].startswith("compiled programs are not kept: ")
    assert notes.splitlines()[-1].startswith("error: model 'none'")


@pytest.mark.parametrize("script", ["run.py", "run_streaming.py"])
def test_help(place, env, script):
    status, out, notes = run(script, "--help", cwd=place / "cwd", env=env)
    assert (status, notes) == (0, "")
    assert f"usage: {script} [KEY=VALUE ...]" in out


def test_a_typing_mistake_is_answered_before_jax_is_imported(place, env):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.modules["jax"] = sys.modules["transformers"] = None
runpy.run_path("{Path(__file__).parents[1] / "run_streaming.py"}", run_name="__main__")
"""
    status, out, notes = run(code, "sampling.top_k=x", cwd=place / "cwd", env=env)
    assert (status, out) == (2, "")
    assert (
        notes
        == "error: sampling.top_k: got 'x'; allowed: an integer >= 0 and <= 2147483647 (0: off) or null\n"
    )
