"""What the README shows is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment, run

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
