"""Weights of a CLIP: what a backbone spec names, read safely from a file or a hub, and their digest."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.preprocess import MEAN, STD

EMBEDDED = "embedded"
OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's state dicts, beside the weights
SIZES = (
    "layers",
    "width",
    "heads",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
)


def config_and_weights(spec: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip config and state dict of a backbone spec; ValueError as load_backbone has it."""
    if spec == EMBEDDED:
        from models.embedded import embedded_weights

        return embedded_weights()
    name, separator, source = spec.partition(":")
    if not separator or not source:
        raise ValueError(f"backbone {spec!r} is neither 'embedded' nor '<open_clip model>:<pretrained tag or path>'")
    config = model_config(name)
    check_plain_vit(config)
    check_pretraining(name, source, config)
    tensors, from_openai = read_weights(name, source)
    check_gelu(name, source, config, from_openai, "OpenAI's")
    return config, tensors


def check_pretraining(name: str, source: str, config: Mapping[str, Any]) -> None:
    """ValueError where weights were trained with another activation or normalisation than they would run with.

    open_clip knows that of each tag. A local file counts as one of the model's tags where these agree.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    known = [open_clip.get_pretrained_cfg(name, tag) for tag in ([source] if source in tags else tags)]
    quick = bool(known) and all(found.get("quick_gelu") for found in known)
    check_gelu(name, source, config, quick, f"the weights {source!r} of {name}")
    if source in tags and any(known[0].get(key, own) != own for key, own in (("mean", MEAN), ("std", STD))):
        raise ValueError(
            f"'{name}:{source}' was trained on images that were not normalised with OpenAI's mean and deviation"
        )


def check_gelu(name: str, source: str, config: Mapping[str, Any], quick: bool, whose: str) -> None:
    """ValueError where weights would run with the exact GELU that they were not trained with."""
    import open_clip

    if quick and not config.get("quick_gelu") and f"{name}-quickgelu" in open_clip.list_models():
        raise ValueError(f"{whose} need quick GELU: use '{name}-quickgelu:{source}' instead of '{name}:{source}'")


def check_plain_vit(config: Mapping[str, Any]) -> None:
    """ValueError unless both towers are CLIP's own transformers, of whatever size."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for plain, given in ((CLIPVisionCfg(), config["vision_cfg"]), (CLIPTextCfg(), config["text_cfg"])):
        other = [
            name for name in given if name not in (*SIZES, "patch_dropout") and given[name] != vars(plain).get(name)
        ]
        other += [name for name in ("layers", "patch_size", "image_size") if not isinstance(given.get(name, 0), int)]
        if other:
            raise ValueError(
                f"only plain CLIP vision transformers have a V-V path, and learned prompts CLIP's own text tower: this "
                f"config describes another tower ({', '.join(other)})"
            )


def model_config(name: str) -> dict[str, Any]:
    """open_clip's config of a model name; the refused names get the nearest known ones."""
    import difflib

    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise ValueError(f"open_clip knows no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return dict(config)


def read_weights(name: str, source: str) -> tuple[dict[str, Tensor], bool]:
    """State dict of a local file or a hub tag, and whether it is known to be OpenAI's."""
    path = Path(source)
    if "://" in source:
        raise ValueError(f"weights {source!r} are a URI: flows and commands fetch them, a backbone takes a local file")
    if not path.suffix and not path.exists():
        return download_weights(name, source), source == "openai"
    if not path.is_file():
        raise ValueError(f"weights {source!r} do not exist")
    archive = is_torchscript(path)
    try:
        state = read_state(path, archive)
    except Exception as error:  # pickle, zip, safetensors and torch errors alike: not a file that may be trusted
        reason = first_sentence(error) or type(error).__name__
        raise ValueError(f"the weights {source!r} cannot be read safely: {reason}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"the weights {source!r} are no state dict but a {type(state).__name__}")
    state = {str(tensor).removeprefix("module."): value for tensor, value in state.items()}  # of distributed training
    return state, archive or "openai" in path.name or all(name in state for name in OPENAI_FACTS)


def first_sentence(error: Exception) -> str:
    """What torch says of a file that it refuses, without its advice to trust it."""
    return next(iter(str(error).splitlines()), "").partition(". ")[0]


def read_state(path: Path, archive: bool) -> Any:
    """What a file of weights holds: a state dict, if it is one; archive: OpenAI's TorchScript."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if archive:
        refuse_code(path)
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return content.get("state_dict", content) if isinstance(content, Mapping) else content


def refuse_code(path: Path) -> None:
    """ValueError where loading a TorchScript archive would run code of its own, which could write files."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("the archive has a file twice")
        for name in names:
            if "/code/" in name and b"__setstate__" in archive.read(name):
                raise ValueError(f"the archive has code that runs when it is loaded ({name})")


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def download_weights(name: str, tag: str) -> dict[str, Tensor]:
    """State dict of a pretrained tag, through open_clip and its cache."""
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(name)
    if tag not in known:
        raise ValueError(f"{name} has no pretrained tag or local file {tag!r}; tags: {', '.join(known) or 'none'}")
    try:
        file = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except Exception as error:  # whatever the hub client raises without a network
        raise ValueError(
            f"the weights '{name}:{tag}' could not be fetched ({type(error).__name__}): where no hub can be reached, give "
            f"a local file or URI instead, e.g. '{name}:/path/to/open_clip_model.safetensors'"
        ) from error
    return read_weights(name, str(file))[0]


def learned(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a state dict, without what older archives hold beside them; ValueError where others are no tensors."""
    beside = {*OPENAI_FACTS, "attn_mask"}
    try:
        return {name: torch.as_tensor(value) for name, value in state_dict.items() if name not in beside}
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"the weights are no tensors: {error}") from error


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values in name order: equal for equal weights in whatever file format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous().cpu()
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
