"""What the README shows is what happens."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import load_model
from tests.commands import ROOT, environment, run
from tests.servers import SMALL, running
from tests.test_server import expected

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The arguments of each of the README's calls of `script`."""
    joined = "\n".join(text for kind, text in BLOCKS if kind == "bash").replace("\\\n", " ")
    lines = [line.split(f"python {script}", 1) for line in joined.splitlines() if f"python {script}" in line]
    return [shlex.split(parts[1]) for parts in lines]


def shown_after(marker: str) -> str:
    """The output block that follows the block with `marker`."""
    place = next(i for i, (kind, text) in enumerate(BLOCKS) if kind == "bash" and marker in text)
    return BLOCKS[place + 1][1]


def test_the_first_command_prints_what_the_readme_says(tmp_path: Path) -> None:
    arguments = commands("run_streaming.py")[0]
    status, out, err = run("run_streaming.py", *arguments, cwd=ROOT, env=environment(tmp_path))
    shown = shown_after("pip install uv &&").strip().splitlines()
    assert status == 0, err
    assert out.strip() in shown
    closing = err.strip().splitlines()[-1]
    untimed = re.compile(r"first token: .*? s \| .*? tokens/s \| .*? ms, p99 .*? ms \| compiled \d+ of \d+")
    assert untimed.sub("", closing) == untimed.sub("", shown[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        pytest.param(script, arguments, id=" ".join(arguments)[:60])
        for script in ("run.py", "run_streaming.py")
        for arguments in commands(script)
        if "model.name=" not in " ".join(arguments) and "temprature" not in " ".join(arguments)
    ],
)
def test_every_command_of_the_readme_runs(script: str, arguments: list[str]) -> None:
    import os

    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, env=dict(os.environ), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_python_of_the_readme_and_the_example_run(tmp_path: Path) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    for script in (code, (ROOT / "examples/own_loop.py").read_text(encoding="utf-8")):
        file = tmp_path / "script.py"
        file.write_text(script.replace("Path(__file__).parents[1]", f"Path({str(ROOT)!r})"), encoding="utf-8")
        paths = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(file)],
            cwd=ROOT,
            env=environment(tmp_path, **paths),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        text = done.stdout.decode().strip()
        assert text
        if script is code:  # streamed, then whole: the same text twice
            assert text[: len(text) // 2].strip() == text[len(text) // 2 :].strip()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_of_the_readme_streams_what_sample_gives(env: dict[str, str]) -> None:
    block = next(text for kind, text in BLOCKS if kind == "bash" and text.startswith("curl "))
    assert "http://127.0.0.1:8000/" in block
    with running("embedded", env, *SMALL) as server:
        command = block.replace("http://127.0.0.1:8000", server.url)
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=120, check=True)
    frames = [f for f in done.stdout.decode().strip().split("\n\n") if f != ": heartbeat"]
    shown = [line for line in shown_after("curl -N").splitlines() if line.startswith("data: ")]
    assert frames[-1] == shown[-1] == "data: [DONE]"
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    panda = ROOT / "examples/imgs/panda_climbing.png"
    asked = {"max_new_tokens": 200, "seed": 42}
    _, result = expected(load_model("embedded"), "Describe this image", panda, **asked)
    assert ("".join(texts), chunks[-1]["choices"][0]["finish_reason"]) == (result.texts[0], "stop")
    first = json.loads(shown[0].removeprefix("data: "))
    assert first["choices"][0]["delta"]["content"] == next(filter(None, texts))
