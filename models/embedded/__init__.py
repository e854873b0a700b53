"""The small CLIP that ships with the project: where its files are and how they are read."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

FOLDER = Path(__file__).parent
IMAGE_SIZE = 256  # of detectors on it, the model card says why
DPAM_LAYERS = 2  # of its 4 blocks, in pre-training and in detectors


def embedded_config() -> dict[str, Any]:
    """open_clip config of the embedded backbone."""
    return dict(json.loads((FOLDER / "config.json").read_text()))


def embedded_weights() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip config and fp32 state dict of the embedded backbone."""
    from safetensors.torch import load_file

    config = embedded_config()
    return config, expand_vocabulary(load_file(FOLDER / "weights.safetensors"), config["text_cfg"]["vocab_size"])


def expand_vocabulary(state: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """The state dict with CLIP's full token table, in fp32.

    The file holds a row for each token that pre-training met, then one row that stands for all the others: the full
    table would be three quarters of the file.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    rows = state.pop("token_embedding.weight")
    table = rows[-1].expand(vocab_size, -1).clone()
    table[state.pop("token_embedding.ids").long()] = rows[:-1]
    return state | {"token_embedding.weight": table}
