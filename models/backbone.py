"""The frozen CLIP of AnomalyCLIP: open_clip's weights, with the V-V attention path beside the ordinary one.

open_clip builds the modules and checks the state dict; the two streams are computed here from its public submodules,
because no open_clip entry point can inject V-V attention. Only square inputs and ViT towers with a class token are
covered (ResNet CLIPs are refused).

Two things are skipped, exactly: of the last block's ordinary stream only the class token is computed (nothing else is
read), and the V-V stream ends at the last feature layer that was asked for.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import multi_head_attention
from models.stem import ConvStem
from models.weights import check_plain_vit, config_and_weights, learned, weights_digest

onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, H, M, d), (B, H, N, d), (B, H, N, d) -> (B, H, M, d)


class ImageFeatures(NamedTuple):
    """What the vision tower gives for a batch of B images; neither part is L2-normalised.

    image: (B, D), the ordinary stream's class token, projected *without* ln_post (as the published code has it).
    patches: one (B, P, D) tensor a feature layer: patch tokens after ln_post and projection, class token dropped.
    """

    image: Tensor
    patches: list[Tensor]


class Backbone(nn.Module):
    """A frozen CLIP ViT at one square image size.

    spec: how to load it again; weights_sha256: digest of its tensors, whatever file format they came from.
    """

    positions: Tensor  # (1 + P, C), resized to the image size

    def __init__(self, clip: Any, config: dict[str, Any], image_size: int, spec: str, weights_sha256: str) -> None:
        super().__init__()
        self.clip: Any = clip.eval().requires_grad_(False)
        self.config, self.image_size, self.spec, self.weights_sha256 = config, image_size, spec, weights_sha256
        self.patch_size: int = config["vision_cfg"]["patch_size"]
        if image_size < 1 or image_size % self.patch_size:
            raise ValueError(f"image size {image_size} is not a multiple of the patch size {self.patch_size}")
        self.grid = image_size // self.patch_size
        table = resize_positions(clip.visual.positional_embedding.detach(), self.grid)
        self.register_buffer("positions", table, persistent=False)

    @property
    def layers(self) -> int:
        return len(self.clip.visual.transformer.resblocks)

    @property
    def embed_dim(self) -> int:
        return int(self.config["embed_dim"])

    def encode_image(self, images: Tensor, feature_layers: Sequence[int], dpam_layers: int) -> ImageFeatures:
        """Class-token feature and patch features of 1-based feature_layers; V-V attention in the last dpam_layers blocks.

        images: (B, 3, S, S), preprocessed, S the backbone's image size.
        """
        return encode_image(self.clip.visual, self.positions, images, feature_layers, dpam_layers)


def encode_image(
    visual: Any, positions: Tensor, images: Tensor, feature_layers: Sequence[int], dpam_layers: int
) -> ImageFeatures:
    """Both streams of the vision tower, projected into the joint space; see ImageFeatures."""
    class_token, tokens = two_streams(visual, positions, images, feature_layers, dpam_layers, multi_head_attention)
    image = class_token.to(visual.proj.dtype) @ visual.proj
    return ImageFeatures(image.float(), [project_patches(visual, layer) for layer in tokens])


def two_streams(
    visual: Any,
    positions: Tensor,
    images: Tensor,
    feature_layers: Sequence[int],
    dpam_layers: int,
    attention: Attention = F.scaled_dot_product_attention,
) -> tuple[Tensor, list[Tensor]]:
    """The ordinary class token (B, C) and the V-V stream's tokens (B, N, C) of each feature layer, before ln_post.

    In block l with the V-V path (AnomalyCLIP section 3.3, DPAM): p_l = p_{l-1} + out_proj(attention(v, v, v)) with v from
    the ordinary stream, and no MLP. Before that range p_l is the ordinary o_l. Differentiable: pre-training uses it too.
    """
    blocks = visual.transformer.resblocks
    depth = len(blocks)
    check_layers(feature_layers, dpam_layers, depth)
    ordinary = vv = embed_patches(visual, positions, images)  # B N C
    collected = {}
    for number, block in enumerate(blocks, start=1):
        in_vv_range = number > depth - dpam_layers
        class_token_only = number == depth and (in_vv_range or number not in feature_layers)
        q, k, v = project_qkv(block, ordinary, class_token_only)
        if in_vv_range and number <= max(feature_layers):
            vv = vv + attend(block, v, v, v, attention)
        ordinary = (ordinary[:, :1] if class_token_only else ordinary) + attend(block, q, k, v, attention)
        ordinary = ordinary + mlp(block, ordinary)
        if not in_vv_range:
            vv = ordinary
        if number in feature_layers:
            collected[number] = vv
    return ordinary[:, 0], [collected[layer] for layer in feature_layers]


def check_layers(feature_layers: Sequence[int], dpam_layers: int, depth: int) -> None:
    """ValueError unless 1 <= every feature layer <= depth and 0 <= dpam_layers <= depth."""
    if not feature_layers or not all(1 <= layer <= depth for layer in feature_layers):
        raise ValueError(f"feature layers {list(feature_layers)} must be numbers from 1 to {depth}")
    if not 0 <= dpam_layers <= depth:
        raise ValueError(f"dpam_layers {dpam_layers} must lie between 0 and {depth}")


def embed_patches(visual: Any, positions: Tensor, images: Tensor) -> Tensor:
    images = images.to(visual.class_embedding.dtype, memory_format=torch.channels_last)
    x = visual.conv1(images)  # B C g g
    x = x.flatten(2).transpose(1, 2).to(positions.dtype)  # B P C
    class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    return layer_norm(visual.ln_pre, torch.cat([class_token, x], dim=1) + positions)  # B N C, N = 1 + P


def project_patches(visual: Any, tokens: Tensor) -> Tensor:
    """(B, N, C) tokens -> (B, P, D) patch features: projected, the class token dropped."""
    return project(visual, tokens[:, 1:])


def project(visual: Any, tokens: Tensor) -> Tensor:
    """(…, C) tokens -> (…, D) features: ln_post, then the projection."""
    return (layer_norm(visual.ln_post, tokens).to(visual.proj.dtype) @ visual.proj).float()


def project_qkv(block: Any, tokens: Tensor, class_token_only: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, N, C) of ln_1(tokens); queries of the class token alone where only it is needed."""
    attn, x = block.attn, layer_norm(block.ln_1, tokens)
    if not class_token_only:
        q, k, v = linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        return q, k, v
    width = x.shape[-1]
    k, v = linear(x, attn.in_proj_weight[width:], attn.in_proj_bias[width:]).chunk(2, dim=-1)
    return linear(x[:, :1], attn.in_proj_weight[:width], attn.in_proj_bias[:width]), k, v


def attend(block: Any, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """Multi-head attention and output projection: q (B, M, C), k and v (B, N, C) -> (B, M, C)."""
    attn = block.attn
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # B H N d
    x = attention(q, k, v).transpose(1, 2).flatten(2)  # B M C
    return linear(x, attn.out_proj.weight, attn.out_proj.bias)


def mlp(block: Any, tokens: Tensor) -> Tensor:
    x = linear(layer_norm(block.ln_2, tokens), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    return linear(activate(block.mlp.gelu, x), block.mlp.c_proj.weight, block.mlp.c_proj.bias)


def activate(gelu: nn.Module, x: Tensor) -> Tensor:
    """gelu(x); x is overwritten where no gradient is asked for.

    Quick GELU, x sigmoid(1.702 x), is silu(1.702 x) / 1.702: in place a fifth of the module's time in fp32.
    """
    if torch.is_grad_enabled() or type(gelu).__name__ != "QuickGELU":
        return gelu(x)
    return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight.T + bias in the weights' precision: reduced-precision weights pull the activations with them.

    fp32 on a CPU goes through oneDNN where torch has it: MKL, torch's own choice, is slower on AMD's processors. The
    operator is called by name because torch's switch to oneDNN (`set_float32_matmul_precision`) is global and permits
    bf16 on processors with AMX; this call is fp32 everywhere.
    """
    x = x.to(weight.dtype)
    fp32_on_cpu = x.dtype == torch.float32 and x.device.type == "cpu"
    if onednn_linear and (weight.is_mkldnn or (fp32_on_cpu and not torch.is_grad_enabled())):
        return onednn_linear(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def pack_matrices(visual: Any, tokens: int) -> None:
    """In place: the matrices of the blocks in oneDNN's layout for products with so many rows, where a CPU has one.

    It is else made anew in every product. They can then be multiplied with, by `linear`, and nothing else; the last block's
    in_proj_weight stays as it is, because a part of it is taken (see project_qkv).
    """
    blocks = visual.transformer.resblocks
    matrices = [(block.attn, "in_proj_weight") for block in blocks[:-1]]
    matrices += [(m, "weight") for b in blocks for m in (b.attn.out_proj, b.mlp.c_fc, b.mlp.c_proj)]
    for module, name in matrices:
        matrix = getattr(module, name).detach()
        if can_pack(matrix):
            setattr(module, name, nn.Parameter(pack_matrix(matrix, tokens), requires_grad=False))


def can_pack(matrix: Tensor) -> bool:
    dtypes = [torch.float32] + [torch.bfloat16] * bool(onednn_linear and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(onednn_linear) and matrix.device.type == "cpu" and not matrix.is_mkldnn and matrix.dtype in dtypes


def pack_matrix(matrix: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
    return packed


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Position embedding (1 + g*g, C) resampled to a grid x grid layout, (1 + grid*grid, C), as the published code does.

    Bilinear, align_corners False, no antialiasing; always from the trained table, never from a resampled one.
    """
    class_row, patches = table[:1], table[1:]
    side = round(len(patches) ** 0.5)
    if side == grid:
        return table.clone()
    image = patches.T.reshape(1, -1, side, side)  # 1 C g g
    image = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([class_row, image.flatten(2)[0].T])


def build_backbone(
    open_clip_config: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    image_size: int,
    spec: str = "in memory",
) -> Backbone:
    """A backbone from an open_clip model config (`embed_dim`, `quick_gelu`, `vision_cfg`, `text_cfg`) and its state dict.

    One key is not open_clip's: `conv_stem`, true where a ConvStem stands in the place of the patch embedding.

    Values may be tensors or numpy arrays of any float type; they are held in fp32. Raises ValueError where keys or shapes
    do not fit the config, or where it is not a plain CLIP ViT.
    """
    config = copy.deepcopy(dict(open_clip_config))
    tensors = {name: tensor.float() for name, tensor in learned(state_dict).items()}
    return Backbone(build_clip(config, tensors), config, image_size, spec, weights_digest(tensors))


def build_clip(config: Mapping[str, Any], tensors: Mapping[str, Tensor], text_tower: bool = True) -> Any:
    """open_clip's module around the given tensors, which are not copied."""
    from open_clip.model import CLIP

    check_plain_vit(config)
    arguments = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
    with torch.device("meta"):
        try:
            clip: Any = CLIP(**arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"the model config describes no CLIP: {error}") from error
        if config.get("conv_stem"):
            clip.visual.conv1 = ConvStem(config["vision_cfg"]["width"])
    if not text_tower:
        for name in ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"):
            setattr(clip, name, None)
    check_names(tensors, clip.state_dict())
    try:
        clip.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:  # of shapes
        raise ValueError(f"the weights do not fit the model config: {' '.join(str(error).split())[:400]}") from error
    mask = torch.full((clip.context_length, clip.context_length), float("-inf")).triu_(1)
    clip.visual.conv1.to(memory_format=torch.channels_last)
    clip.attn_mask = mask  # a buffer without weights: rebuilt, because the modules were made on the meta device
    return clip


def check_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """ValueError unless these are the names of the wanted tensors."""
    missing, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    said = [
        f"{len(names)} tensors are {word}, {names[0]} the first"
        for names, word in ((missing, "missing"), (surplus, "too many"))
        if names
    ]
    if said:
        raise ValueError(f"the weights do not fit the model config: {'; '.join(said)}")


def load_backbone(spec: str, image_size: int | None = None, text_tower: bool = True) -> Backbone:
    """Load `embedded`, or `<open_clip model>:<pretrained tag or local path>`, at a square image_size (default: its own).

    Local weights are safetensors, OpenAI's TorchScript archive, or a plain state dict (read with weights_only=True).
    Without the text tower, which is enough to score with a bundle, the file is read three times, once for its digest, and
    never held whole. Raises ValueError with what to do: unknown model, missing file, weights that do not fit, OpenAI weights
    with a model name that would compute exact instead of quick GELU, no network for a hub tag.
    """
    config, state_dict = config_and_weights(spec)
    image_size = image_size or int(config["vision_cfg"]["image_size"])
    if text_tower:
        return build_backbone(config, state_dict, image_size, spec)
    digest = weights_digest(learned(state_dict))
    tensors = dict[str, Tensor]()
    for half in range(2):  # what a file's tensors map of it stays in memory until the last of them is gone
        del state_dict
        state_dict = config_and_weights(spec)[1]
        names = [name for name in state_dict if name.startswith(("visual.", "logit_scale"))]
        begin, end = half * len(names) // 2, (half + 1) * len(names) // 2
        tensors |= {name: state_dict[name].to(torch.float32, copy=True) for name in names[begin:end]}
    del state_dict
    return Backbone(build_clip(config, tensors, text_tower=False), config, image_size, spec, digest)
