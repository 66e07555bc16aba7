"""Shape of the published model: what single files do not say of themselves.

The values are facts of the checkpoint OmniGen2/OmniGen2 and of the models it is made of: Qwen2.5-VL 3B, and
the autoencoder of FLUX.1. Where they are the libraries' defaults, they are left out.
"""

from typing import Any

REPOSITORY = "OmniGen2/OmniGen2"

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "OmniGen2Transformer2DModel",
        "patch_size": 2,
        "in_channels": 16,
        "hidden_size": 2520,
        "num_layers": 32,
        "num_refiner_layers": 2,
        "num_attention_heads": 21,
        "num_kv_heads": 7,
        "multiple_of": 256,
        "norm_eps": 1e-5,
        "axes_dim_rope": [40, 40, 40],
        "axes_lens": [1024, 1664, 1664],
        "text_feat_dim": 2048,
        "timestep_scale": 1000.0,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "mllm": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [16, 24, 24],
            },
            "tie_word_embeddings": True,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    },
}
"""The `config.json` of each part."""
