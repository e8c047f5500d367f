"""Configs of popular models, so that `preset` and `hf-lora plan` know them where no Hub is in reach.

Only the keys that a shape needs; the repositories' own `config.json` files are the source, written down in 2025.
"""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["POPULAR_MODELS", "popular_config"]


def _decoder(
    family: str, layers: int, hidden: int, mlp: int, heads: int, of_keys: int, vocabulary: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": of_keys,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        **more,
    }


def _llama(layers: int, hidden: int, mlp: int, heads: int, of_keys: int, **more: Any) -> dict[str, Any]:
    """Return a Llama 1 or 2 config."""
    return _decoder("llama", layers, hidden, mlp, heads, of_keys, 32_000, False, **more)


def _llama3(layers: int, hidden: int, mlp: int, heads: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    return _decoder("llama", layers, hidden, mlp, heads, 8, 128_256, tied, max_position_embeddings=131_072, **more)


def _qwen2(layers: int, hidden: int, mlp: int, heads: int, of_keys: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return _decoder("qwen2", layers, hidden, mlp, heads, of_keys, vocabulary, tied, max_position_embeddings=32_768)


def _qwen3(layers: int, hidden: int, mlp: int, heads: int, of_keys: int, tied: bool) -> dict[str, Any]:
    more = {"head_dim": 128, "max_position_embeddings": 40_960}
    return _decoder("qwen3", layers, hidden, mlp, heads, of_keys, 151_936, tied, **more)


_LLAMA2: Final = {
    "7b": _llama(32, 4096, 11_008, 32, 32, max_position_embeddings=4096),
    "13b": _llama(40, 5120, 13_824, 40, 40, max_position_embeddings=4096),
    "70b": _llama(80, 8192, 28_672, 64, 8, max_position_embeddings=4096),
}
_LLAMA3_1B: Final = _llama3(16, 2048, 8192, 32, True, head_dim=64)
_LLAMA3_3B: Final = _llama3(28, 3072, 8192, 24, True, head_dim=128)
_LLAMA3_8B: Final = _llama3(32, 4096, 14_336, 32)
_LLAMA3_405B: Final = _llama3(126, 16_384, 53_248, 128)
_LLAMA3_70B: Final = _llama3(80, 8192, 28_672, 64)
_MISTRAL: Final = _decoder(
    "mistral", 32, 4096, 14_336, 32, 8, 32_000, False, max_position_embeddings=32_768, sliding_window=4096
)
_MISTRAL_SMALL: Final = _decoder("mistral", 40, 5120, 32_768, 32, 8, 131_072, False, head_dim=128)
_MIXTRAL: Final = _decoder(
    "mixtral", 32, 4096, 14_336, 32, 8, 32_000, False,
    num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=32_768,
)  # fmt: skip
_SMOLLM2: Final = {"max_position_embeddings": 8192}

POPULAR_MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{f"meta-llama/Llama-2-{size}-hf": config for size, config in _LLAMA2.items()},
    **{f"meta-llama/Llama-2-{size}-chat-hf": config for size, config in _LLAMA2.items()},
    "huggyllama/llama-7b": _llama(32, 4096, 11_008, 32, 32, max_position_embeddings=2048),
    "huggyllama/llama-13b": _llama(40, 5120, 13_824, 40, 40, max_position_embeddings=2048),
    "huggyllama/llama-30b": _llama(60, 6656, 17_920, 52, 52, max_position_embeddings=2048),
    "codellama/CodeLlama-34b-hf": _llama(48, 8192, 22_016, 64, 8, max_position_embeddings=16_384),
    "meta-llama/Meta-Llama-3-8B": {**_LLAMA3_8B, "max_position_embeddings": 8192},
    "meta-llama/Meta-Llama-3-8B-Instruct": {**_LLAMA3_8B, "max_position_embeddings": 8192},
    "meta-llama/Meta-Llama-3-70B": {**_LLAMA3_70B, "max_position_embeddings": 8192},
    "meta-llama/Llama-3.1-8B": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA3_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA3_70B,
    "meta-llama/Llama-3.1-405B": _LLAMA3_405B,
    "meta-llama/Llama-3.1-405B-Instruct": _LLAMA3_405B,
    "meta-llama/Llama-3.2-1B": _LLAMA3_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA3_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA3_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA3_3B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA3_70B,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(22, 2048, 5632, 32, 4, max_position_embeddings=2048),
    "mistralai/Mistral-7B-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.2": {**_MISTRAL, "sliding_window": None},
    "mistralai/Mistral-7B-v0.3": {**_MISTRAL, "vocab_size": 32_768, "sliding_window": None},
    "mistralai/Mistral-7B-Instruct-v0.3": {**_MISTRAL, "vocab_size": 32_768, "sliding_window": None},
    "mistralai/Mistral-Nemo-Base-2407": _decoder(
        "mistral", 40, 5120, 14_336, 32, 8, 131_072, False, head_dim=128, max_position_embeddings=131_072
    ),
    "mistralai/Ministral-8B-Instruct-2410": _decoder(
        "mistral", 36, 4096, 12_288, 32, 8, 131_072, False, head_dim=128, max_position_embeddings=32_768
    ),
    "mistralai/Mistral-Small-24B-Base-2501": _MISTRAL_SMALL,
    "mistralai/Magistral-Small-2506": _MISTRAL_SMALL,
    "mistralai/Devstral-Small-2507": _MISTRAL_SMALL,
    "mistralai/Mixtral-8x7B-v0.1": _MIXTRAL,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _MIXTRAL,
    "Qwen/Qwen2-7B-Instruct": _qwen2(28, 3584, 18_944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-0.5B": _qwen2(24, 896, 4864, 14, 2, 151_936, True),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(24, 896, 4864, 14, 2, 151_936, True),
    "Qwen/Qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(28, 1536, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2.5-3B": _qwen2(36, 2048, 11_008, 16, 2, 151_936, True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(36, 2048, 11_008, 16, 2, 151_936, True),
    "Qwen/Qwen2.5-7B": _qwen2(28, 3584, 18_944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(28, 3584, 18_944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-14B": _qwen2(48, 5120, 13_824, 40, 8, 152_064, False),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2(48, 5120, 13_824, 40, 8, 152_064, False),
    "Qwen/Qwen2.5-32B": _qwen2(64, 5120, 27_648, 40, 8, 152_064, False),
    "Qwen/Qwen2.5-32B-Instruct": _qwen2(64, 5120, 27_648, 40, 8, 152_064, False),
    "Qwen/Qwen2.5-72B": _qwen2(80, 8192, 29_568, 64, 8, 152_064, False),
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(80, 8192, 29_568, 64, 8, 152_064, False),
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, 8, True),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, 8, True),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32, 8, True),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12_288, 32, 8, False),
    "Qwen/Qwen3-14B": _qwen3(40, 5120, 17_408, 40, 8, False),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25_600, 64, 8, False),
    "Qwen/Qwen3-30B-A3B": _decoder(
        "qwen3_moe", 48, 2048, 6144, 32, 4, 151_936, False,
        head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
    "google/gemma-2b": _decoder("gemma", 18, 2048, 16_384, 8, 1, 256_000, True, head_dim=256),
    "google/gemma-7b": _decoder("gemma", 28, 3072, 24_576, 16, 16, 256_000, True, head_dim=256),
    "google/gemma-2-2b": _decoder("gemma2", 26, 2304, 9216, 8, 4, 256_000, True, head_dim=256),
    "google/gemma-2-9b": _decoder("gemma2", 42, 3584, 14_336, 16, 8, 256_000, True, head_dim=256),
    "google/gemma-2-27b": _decoder("gemma2", 46, 4608, 36_864, 32, 16, 256_000, True, head_dim=128),
    "google/gemma-3-1b-it": _decoder("gemma3_text", 26, 1152, 6912, 4, 1, 262_144, True, head_dim=256),
    "microsoft/phi-2": _decoder("phi", 32, 2560, 10_240, 32, 32, 51_200, False),
    "microsoft/Phi-3-mini-4k-instruct": _decoder("phi3", 32, 3072, 8192, 32, 32, 32_064, False),
    "microsoft/Phi-3-medium-4k-instruct": _decoder("phi3", 40, 5120, 17_920, 40, 10, 32_064, False),
    "microsoft/phi-4": _decoder("phi3", 40, 5120, 17_920, 40, 10, 100_352, False),
    "HuggingFaceTB/SmolLM2-135M": _decoder("llama", 30, 576, 1536, 9, 3, 49_152, True, **_SMOLLM2),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _decoder("llama", 30, 576, 1536, 9, 3, 49_152, True, **_SMOLLM2),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _decoder("llama", 32, 960, 2560, 15, 5, 49_152, True, **_SMOLLM2),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _decoder("llama", 24, 2048, 8192, 32, 32, 49_152, True, **_SMOLLM2),
    "HuggingFaceTB/SmolLM3-3B": _decoder("smollm3", 36, 2048, 11_008, 16, 4, 128_256, True),
    "EleutherAI/pythia-1b": _decoder("gpt_neox", 16, 2048, 8192, 8, 8, 50_304, False),
    "EleutherAI/pythia-6.9b": _decoder("gpt_neox", 32, 4096, 16_384, 32, 32, 50_432, False),
    "tiiuae/falcon-7b": {
        **{"model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71},
        **{"vocab_size": 65_024, "multi_query": True, "parallel_attn": True, "bias": False},
    },
    "openai-community/gpt2": {"model_type": "gpt2"},
}  # fmt: skip
"""Hub id → the part of its config that a shape needs."""


def popular_config(model_id: str) -> Mapping[str, Any] | None:
    """Return the config of a popular model by its Hub id in any case, or None.

    >>> popular_config("meta-llama/Llama-2-7b-hf")["hidden_size"]
    4096
    """
    return _BY_LOWER_CASE.get(model_id.strip().lower())


_BY_LOWER_CASE: Final = {name.lower(): config for name, config in POPULAR_MODELS.items()}
