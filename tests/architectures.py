"""Small models of the architectures that people bring, with the sizes that their configurations call by other names."""

from __future__ import annotations

TOKENS = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1}
LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
SHAPE = TOKENS | LAYERS | {"intermediate_size": 128, "initializer_range": 0.2}
GROUPED = SHAPE | {"num_key_value_heads": 2, "head_dim": 16}
WINDOW = 8
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
OLD = TOKENS | {"n_layer": 2, "n_head": 4, "initializer_range": 0.2}
OPT = TOKENS | LAYERS | {"word_embed_proj_dim": 64, "ffn_dim": 128, "init_std": 0.2}
# Name → (transformers' model_type, settings of its configuration).
CONFIGS = {
    "llama": ("llama", GROUPED),
    "llama-1": ("llama", SHAPE),
    "mistral": ("mistral", GROUPED | {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", GROUPED),
    "gemma": ("gemma", GROUPED),
    "gemma2": ("gemma2", GROUPED | ALTERNATING),
    "gemma3": ("gemma3_text", GROUPED | ALTERNATING),
    "phi": ("phi", SHAPE),
    "phi3": ("phi3", GROUPED | {"pad_token_id": None}),
    "gpt-neox": ("gpt_neox", SHAPE),
    "gpt2": ("gpt2", OLD | {"n_embd": 64, "n_positions": 128}),
    "opt": ("opt", OPT),
    "falcon": ("falcon", SHAPE | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon-40b": ("falcon", SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": ("bloom", OLD | {"hidden_size": 64}),
    "mixtral": ("mixtral", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 1}),
    "qwen3-moe": ("qwen3_moe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 64}),
    "gpt-oss": ("gpt_oss", GROUPED | ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 1}),
}
EAGER = ("gemma2", "bloom", "gpt-oss")  # their classes know no SDPA


def model_of(name: str, seed: int = 0, **changes):
    """Return a model in fp32 in eval mode whose biases are not zero, as a trained model's are."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, settings = CONFIGS[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(settings | changes))).float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(std=0.1)
    return model
