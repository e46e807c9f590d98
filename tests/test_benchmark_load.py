"""The load tests of `benchmarks/` run, and find nothing wrong; how fast is theirs to say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import disconnects, mixed
from serve.chat_request import StreamRequest, converted
from serve.picture_urls import embedded
from serve.rpc.convert import request_of

ROOT = Path(__file__).parents[1]


def run(env: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
@pytest.mark.soak
def test_mixed_load_loses_and_doubles_nothing(tiny_directory, env):
    done = run(env, "mixed", "--minutes", "0.3", "--clients", "12", "--model", str(tiny_directory()))
    assert (done.returncode, "wrong" in done.stdout) == (0, False), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.soak
def test_the_server_is_measured_beside_sample(tiny_directory, env, tmp_path):
    plot = tmp_path / "serve.png"
    options = ("--streams", "1,2", "--tokens", "64", "--repeats", "1", "--plot", str(plot))
    done = run(env, "serve", *options, "--model", str(tiny_directory()))
    assert done.returncode == 0, done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[-2:]] == ["| 1", "| 2"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.soak
def test_what_pooling_gains_is_measured(env):
    done = run(env, "chunks", "--tokens", "2000", "--repeats", "1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4), done.stderr


def test_a_request_of_the_mixed_load_is_the_same_over_every_transport():
    requests = [converted(mixed.request(kind), StreamRequest) for kind in range(mixed.KINDS)]
    assert [request_of(mixed.rpc_request(kind)).sampling() for kind in range(mixed.KINDS)] == [
        request.sampling() for request in requests
    ]
    shown = [kind for kind in range(mixed.KINDS) if mixed.pictures(kind)]
    assert 0 < len(shown) < mixed.KINDS
    for kind in shown:
        url = mixed.request(kind)["messages"][0]["content"][0]["image_url"]["url"]
        assert embedded(url, 2**20) == mixed.rpc_request(kind).messages[0].content[0].image


def test_times_until_a_row_is_free_are_told_in_milliseconds():
    seconds = np.arange(101) / 1000
    assert disconnects.line("gone", seconds) == "| gone | 50.0 | 99.0 | 100.0 |"


@pytest.mark.slow
@pytest.mark.soak
def test_the_time_until_a_row_is_free_is_measured_for_each_way_to_go(tiny_directory, env):
    done = run(env, "disconnects", "--repeats", "2", "--tokens", "400", "--model", str(tiny_directory()))
    assert done.returncode == 0, done.stderr
    told = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()[2:]]
    assert told[:-1] == list(disconnects.WAYS)
