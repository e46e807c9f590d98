"""The sizes of the checkpoint that ships, as the `config.json` that transformers reads."""

from typing import Any

from tokenizers import Tokenizer

from train.tokenizer import ENDOFTEXT, IM_END, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START

FULL = {"width": 256, "vision_depth": 6, "vision_mlp": 1024, "layers": 4, "mlp": 704}
TINY = {"width": 64, "vision_depth": 2, "vision_mlp": 128, "layers": 2, "mlp": 128}


def model_config(tokenizer: Tokenizer, sizes: dict[str, int]) -> dict[str, Any]:
    """A Qwen3-VL configuration; `width` is the hidden size of tower and decoder alike."""
    token = tokenizer.token_to_id
    width = sizes["width"]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": token(IMAGE_PAD),
        "video_token_id": token(VIDEO_PAD),
        "vision_start_token_id": token(VISION_START),
        "vision_end_token_id": token(VISION_END),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": width,
            "intermediate_size": sizes["mlp"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": width // 64 or 1,
            "num_key_value_heads": max(width // 128, 1),
            "head_dim": 64,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": token(ENDOFTEXT),
            "eos_token_id": token(IM_END),
            "dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": sizes["vision_depth"],
            "hidden_size": width,
            "intermediate_size": sizes["vision_mlp"],
            "num_heads": max(width // 64, 1),
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [sizes["vision_depth"] // 2],
            "hidden_act": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
        },
    }
