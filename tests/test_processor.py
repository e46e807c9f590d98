"""A checkpoint's processor files are read whole; what is wrong with them is one line that names the file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import Qwen3VLConfig
from models.errors import CheckpointError
from models.processor import Processor
from tests.tiny import tiny_config
from tests.tokenizer_fixture import CHAT_TEMPLATE, END_OF_TEXT_ID, IM_END_ID, VOCAB_SIZE, write_processor

CONFIG = Qwen3VLConfig.from_dict(tiny_config())


@pytest.fixture
def directory(tmp_path):
    write_json(tmp_path, "config.json", tiny_config())
    write_processor(tmp_path)
    return tmp_path


def write_json(directory: Path, name: str, content) -> None:
    (directory / name).write_text(json.dumps(content))


def change(directory: Path, name: str, **changes) -> None:
    """Put keys into a JSON file, or take out those that are given as None."""
    content = json.loads((directory / name).read_text()) | changes
    write_json(directory, name, {key: value for key, value in content.items() if value is not None})


def read(directory: Path) -> Processor:
    return Processor.from_directory(directory, CONFIG)


def one_line(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_whole_checkpoint(directory):
    processor = Processor.from_directory(str(directory), CONFIG)
    assert processor.eos_ids == (IM_END_ID, END_OF_TEXT_ID)
    assert processor.pad_id == END_OF_TEXT_ID
    assert processor.generation["top_k"] == 20
    assert processor.images.max_pixels == 16777216
    assert len(processor.tokenizer) == VOCAB_SIZE
    assert processor.tokenizer.decode([IM_END_ID]) == "<|im_end|>"
    assert processor.tokenizer.chat_template == CHAT_TEMPLATE


def test_eos_and_pad_fall_back_step_by_step(directory):
    change(directory, "generation_config.json", eos_token_id=None, pad_token_id=None)
    change(directory, "config.json", eos_token_id=7, pad_token_id=8)
    processor = read(directory)
    assert (processor.eos_ids, processor.pad_id) == ((7,), 8)

    config = json.loads((directory / "config.json").read_text())
    change(directory, "config.json", eos_token_id=None, pad_token_id=None)
    change(directory, "config.json", text_config=config["text_config"] | {"eos_token_id": [5, 6, 5]})
    processor = read(directory)
    assert (processor.eos_ids, processor.pad_id) == ((5, 6), END_OF_TEXT_ID)

    write_json(directory, "config.json", tiny_config())
    processor = read(directory)
    assert (processor.eos_ids, processor.pad_id) == ((IM_END_ID,), END_OF_TEXT_ID)

    change(directory, "tokenizer_config.json", pad_token=None)
    assert read(directory).pad_id == IM_END_ID  # not token 0

    change(directory, "tokenizer_config.json", eos_token=None)
    assert "no eos_token_id in any of generation_config.json, config.json" in one_line(directory)


def test_token_0_is_an_id_like_any_other(directory):
    change(directory, "generation_config.json", eos_token_id=0, pad_token_id=0)
    processor = read(directory)
    assert (processor.eos_ids, processor.pad_id) == ((0,), 0)


def test_generation_defaults_may_be_missing(directory):
    (directory / "generation_config.json").unlink()
    processor = read(directory)
    assert dict(processor.generation) == {}
    assert processor.eos_ids == (IM_END_ID,)


@pytest.mark.parametrize("wrong", [VOCAB_SIZE, -1, "</s>", [IM_END_ID, 1.5], True])
def test_ids_outside_the_vocabulary(directory, wrong):
    change(directory, "generation_config.json", eos_token_id=wrong)
    message = one_line(directory)
    assert f"eos_token_id {wrong!r} in generation_config.json is no token id, expected 0 to 511" in message
    assert str(directory) in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_missing_files_are_named(directory, name):
    (directory / name).unlink()
    assert one_line(directory) == f"{directory / name}: no such file; a checkpoint needs one"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe\x00"], ids=repr)
def test_corrupt_files_are_named(directory, name, content):
    (directory / name).write_bytes(content)
    assert one_line(directory).startswith(f"{directory / name}: ")


def test_a_tokenizer_that_is_no_tokenizer_is_named(directory):
    write_json(directory, "tokenizer.json", {"model": {"type": "Sorcery"}})
    assert one_line(directory).startswith(f"{directory / 'tokenizer.json'}: no usable tokenizer (")


def test_image_settings_inside_processor_config_come_first(directory):
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    nested = settings | {"size": {"shortest_edge": 1024, "longest_edge": 2048}}
    write_json(directory, "processor_config.json", {"image_processor": nested})
    assert read(directory).images.max_pixels == 2048
    (directory / "preprocessor_config.json").unlink()  # as transformers 5 saves
    assert read(directory).images.min_pixels == 1024
    write_json(directory, "processor_config.json", {"image_processor": nested | {"patch_size": 0}})
    assert one_line(directory).startswith(f"{directory / 'processor_config.json'}: patch_size is 0")


@pytest.mark.parametrize("key", ["patch_size", "temporal_patch_size", "merge_size"])
def test_image_settings_must_fit_the_vision_tower(directory, key):
    change(directory, "preprocessor_config.json", **{key: 4})
    message = one_line(directory)
    assert message.startswith(f"{directory / 'preprocessor_config.json'}: {key} is 4, but config.json's")


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_chat_templates_in_any_of_their_places(directory, name):
    (directory / "chat_template.jinja").unlink()
    assert read(directory).tokenizer.chat_template is None
    if name.endswith("jinja"):
        (directory / name).write_text("here")
    elif name == "chat_template.json":
        write_json(directory, name, {"chat_template": "here"})
    else:
        change(directory, name, chat_template="here")
    assert read(directory).tokenizer.chat_template == "here"


def test_the_class_that_a_hub_checkpoint_names_changes_nothing(directory):
    plain = read(directory).tokenizer
    change(directory, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", bos_token=None)
    named = read(directory).tokenizer
    text = "Describe\n\n this image: cafe\u0301 12 <|im_end|>"
    assert named(text)["input_ids"] == plain(text)["input_ids"]


def test_padding_and_truncation_of_the_file_are_off(directory):
    saved = json.loads((directory / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write_json(directory, "tokenizer.json", saved)
    assert len(read(directory).tokenizer.backend_tokenizer.encode("a b c d e f g h").ids) >= 8


def test_reading_a_checkpoint_imports_no_torch_and_is_quiet(directory):
    """Seconds of start-up on machines that have it; transformers imports it for AutoTokenizer."""
    change(directory, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    code = (
        "import sys, json; from models.processor import Processor; from models.config import Qwen3VLConfig;"
        f"directory = {str(directory)!r};"
        "config = Qwen3VLConfig.from_dict(json.load(open(directory + '/config.json')));"
        "processor = Processor.from_directory(directory, config);"
        "turn = [{'role': 'user', 'content': 'a'}];"
        "processor.tokenizer.apply_chat_template(turn, tokenize=False);"
        "print('torch' in sys.modules, 'transformers.models.auto' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"},  # as the commands have it
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["False", "False"]
    assert out.stderr == ""
