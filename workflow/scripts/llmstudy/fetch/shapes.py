"""Sizes of known architectures; standard library only, since configs are checked while the workflow is parsed."""

# Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models", and the published config.json files
_LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
SHAPES = {
    "llama-2-7b": _LLAMA_2 | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                              "num_attention_heads": 32, "num_key_value_heads": 32},
    "llama-2-13b": _LLAMA_2 | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                               "num_attention_heads": 40, "num_key_value_heads": 40},
    "llama-2-70b": _LLAMA_2 | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                               "num_attention_heads": 64, "num_key_value_heads": 8},
}  # fmt: skip
