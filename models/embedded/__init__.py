"""The small CLIP that ships with the project: where its files are and how they are read."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def embedded_weights() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip config and fp32 state dict of the embedded backbone."""
    from safetensors.torch import load_file

    config = json.loads((FOLDER / "config.json").read_text())
    return config, expand_vocabulary(load_file(FOLDER / "weights.safetensors"), config["text_cfg"]["vocab_size"])


def compact_vocabulary(state: dict[str, Tensor], used_tokens: Tensor) -> dict[str, Tensor]:
    """Keep the token embeddings that training has moved; all others share one row (saves 49,408 rows on disk)."""
    table = state.pop("token_embedding.weight")
    others = torch.ones(len(table), dtype=torch.bool)
    others[used_tokens] = False
    return state | {
        "token_embedding.ids": used_tokens.int(),
        "token_embedding.rows": table[used_tokens],
        "token_embedding.shared": table[others].mean(0),
    }


def expand_vocabulary(state: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Inverse of compact_vocabulary, in fp32."""
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    table = state.pop("token_embedding.shared").expand(vocab_size, -1).clone()
    table[state.pop("token_embedding.ids").long()] = state.pop("token_embedding.rows")
    return state | {"token_embedding.weight": table}
