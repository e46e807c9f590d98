"""The load tests of `benchmarks/` run, and find nothing wrong; how fast is theirs to say."""

import subprocess
import sys
from pathlib import Path

import pytest

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
