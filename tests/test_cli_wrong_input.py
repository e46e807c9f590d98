"""Every kind of wrong input, given to the real commands: one line, status 2, nothing on standard output."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.forks import run
from tests.tiny import tiny_checkpoint

# (name, command, arguments, what the line says); {} is the folder of `place`.
WRONG = [
    ("missing file", "run_streaming.py", ["inference.image={}/none.png"], ["no such file", "none.png"]),
    ("folder", "run_streaming.py", ["inference.image={}/good"], ["directory", "good"]),
    ("folder in a list", "run.py", ["inference.image=[{}/good,{}/good]"], ["directory", "good"]),
    ("folder without pictures", "run.py", ["inference.image={}/bare"], ["no picture", "bare", ".png"]),
    ("empty path", "run.py", ["inference.image="], ["inference.image", "empty"]),
    ("empty file", "run_streaming.py", ["inference.image={}/empty.png"], ["empty.png", "empty file"]),
    ("truncated", "run_streaming.py", ["inference.image={}/truncated.png"], ["truncated.png", "decoded"]),
    ("no picture", "run.py", ["inference.image={}/text.png"], ["text.png", "not a picture"]),
    ("bomb", "run_streaming.py", ["inference.image={}/bomb.png"], ["bomb.png", "pixels"]),
    (
        "more pixels than allowed",
        "run_streaming.py",
        ["inference.image={}/good/rgb.png", "inference.max_image_pixels=100"],
        ["rgb.png", "at most 100 "],
    ),
    (
        "aspect ratio",
        "run_streaming.py",
        ["inference.image={}/thin.png"],
        ["thin.png", "aspect ratio", "200"],
    ),
    (
        "beyond the context",
        "run_streaming.py",
        ["sampling.max_new_tokens=1024"],
        ["max_new_tokens 1024", "1024, the model's context"],
    ),
    ("prompt beyond the context", "run.py", ["inference.prompt=" + "many " * 2000], ["1024"]),
    ("missing tensor", "run_streaming.py", ["model.name={}/missing"], ["model.language_model.norm.weight"]),
    ("surplus tensors", "run.py", ["model.name={}/surplus"], ["one.weight", "two.weight"]),
    (
        "misshaped tensor",
        "run_streaming.py",
        ["model.name={}/misshaped"],
        ["model.language_model.norm.weight", "[3]", "[48]"],
    ),
    ("unknown architecture", "run.py", ["model.name={}/unknown"], ["'bert'", "qwen3_vl"]),
    ("no checkpoint", "run.py", ["model.name={}/none"], ["none", "hub id"]),
    ("no name", "run.py", ["model.name="], ["model ''", "hub id"]),
    (
        "hub id, no network",
        "run_streaming.py",
        ["model.name=Qwen/Qwen3-VL-2B-Instruct"],
        ["Qwen/Qwen3-VL-2B"],
    ),
    ("bias beyond the vocabulary", "run.py", ["sampling.logit_bias={{9999:1}}"], ["logit_bias", "9999"]),
    ("empty stop text", "run.py", ["sampling.stop="], ["sampling.stop"]),
    ("misspelt key", "run.py", ["sampling.temprature=1"], ["'sampling.temprature'", "sampling.temperature"]),
    ("wrong type", "run_streaming.py", ["sampling.top_k=many"], ["sampling.top_k", "'many'", "an integer"]),
    (
        "tail as long as the context",
        "run_streaming.py",
        ["stream=endless", "stream.context=128", "stream.tail=128"],
        ["stream.tail", "a tail of 128", "up to 127"],
    ),
    (
        "summary, sinks and tail over the context",
        "run_streaming.py",
        ["stream=endless", "stream.context=128", "stream.tail=80"],
        ["stream.tail", "of the summary", "up to 127"],
    ),
    (
        "sinks over their share",
        "run_streaming.py",
        ["stream=endless", "stream.context=128", "stream.tail=8", "inference.prompt=" + "many " * 40],
        ["stream.sinks", "0.4 of the context of 128"],
    ),
    (
        "picture larger than the sinks",
        "run_streaming.py",
        ["stream=endless", "stream.sinks=12", "stream.tail=8", "inference.image={}/good/rgb.png"],
        ["stream.sinks", "inside a picture"],
    ),
    (
        "more sinks than prompt",
        "run_streaming.py",
        ["stream=endless", "stream.sinks=300", "stream.tail=8"],
        ["stream.sinks", "300", "the tokens of the prompt"],
    ),
    (
        "context beyond the model's",
        "run_streaming.py",
        ["stream=endless", "stream.context=4096"],
        ["stream.context", "4096", "1024"],
    ),
    (
        "summary by another policy",
        "run_streaming.py",
        ["stream.policy=shift", "stream.summary.enabled=true"],
        ["stream.summary", "shift", "reseed"],
    ),
    (
        "a tail of a stream that ends",
        "run_streaming.py",
        ["stream.tail=64"],
        ["stream.tail", "without effect", "stream.policy=stop", "reseed or stream.policy=shift"],
    ),
    (
        "a tail of a window",
        "run_streaming.py",
        ["stream.policy=window", "stream.tail=64"],
        ["stream.tail", "window"],
    ),
    (
        "a summary that is switched off",
        "run_streaming.py",
        ["stream=endless", "stream.summary.enabled=false", "stream.summary.timeout=5"],
        ["stream.summary", "enabled=false"],
    ),
    (
        "no summarising checkpoint",
        "run_streaming.py",
        ["stream=endless", "stream.summary.model={}/none"],
        ["none", "hub id"],
    ),
    ("endless batch", "run.py", ["stream=endless"], ["stream", "run_streaming.py"]),
    ("plot of another kind", "run_streaming.py", ["output.plot=a.txt"], ["output.plot", "'a.txt'", ".png"]),
    ("plot without a folder", "run_streaming.py", ["output.plot={}/none/a.png"], ["output.plot", "writable"]),
    ("out of range", "run.py", ["sampling.top_p=2"], ["sampling.top_p", "'2'", "<= 1"]),
]


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds nothing."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def write_good_pictures(folder: Path) -> None:
    """Pictures of every kind that must work."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    rgb.save(folder / "rgb.png")
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    rgb.quantize(16).save(folder / "palette.png")
    rgb.convert("RGBA").rotate(30).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.save(folder / "animated.gif", save_all=True, append_images=[rgb.rotate(90)])


def write_wrong_pictures(folder: Path) -> None:
    (folder / "bare").mkdir()
    (folder / "bare" / "readme.txt").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    whole = (folder / "good" / "rgb.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("a text, and no picture at all")
    (folder / "bomb.png").write_bytes(png_header(60000, 60000))
    Image.new("RGB", (402, 2)).save(folder / "thin.png")


def write_wrong_checkpoints(folder: Path) -> None:
    name = "model.language_model.norm.weight"
    tensors = load_file(tiny_checkpoint(folder / "tiny") / "model.safetensors")
    changed = {
        "missing": {key: value for key, value in tensors.items() if key != name},
        "surplus": tensors | {"one.weight": np.zeros(1, np.float32), "two.weight": np.zeros(1, np.float32)},
        "misshaped": tensors | {name: np.zeros(3, np.float32)},
    }
    for variant, content in changed.items():
        save_file(content, tiny_checkpoint(folder / variant) / "model.safetensors")
    config = tiny_checkpoint(folder / "unknown") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "bert"}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    write_good_pictures(folder / "good")
    write_wrong_pictures(folder)
    write_wrong_checkpoints(folder)
    (folder / "cwd").mkdir()
    return folder


@pytest.mark.parametrize(("script", "arguments", "parts"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_input_is_one_line_and_status_2(place, env, script, arguments, parts):
    filled = [f"model.name={place / 'tiny'}", *(argument.format(place, place) for argument in arguments)]
    status, out, notes = run(script, *filled, cwd=place / "cwd", env=env)
    assert (status, out) == (2, ""), notes
    lines = notes.splitlines()
    assert lines[-1].startswith("error: ")
    for part in parts:
        assert part in lines[-1]
    assert all(line.startswith(("starting", "device: ", "load", "compiling")) for line in lines[:-1])


@pytest.mark.slow
def test_pictures_of_every_kind_work_in_one_prompt(place, env):
    images = [str(path) for path in sorted((place / "good").iterdir())]
    assert len(images) == 8
    status, out, notes = run(
        "run_streaming.py",
        f"model.name={place / 'tiny'}",
        f"inference.image=[{','.join(images)}]",
        "sampling.max_new_tokens=2",
        "output=jsonl",
        cwd=place / "cwd",
        env=env,
    )
    assert status == 0, notes
    assert json.loads(out.splitlines()[-1])["image_tokens"] >= len(images)
