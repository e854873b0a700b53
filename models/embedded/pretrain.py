"""Pre-train the embedded CLIP from nothing: generated scenes, captions, one loop. Resumable, two CPU cores are enough.

    python -m models.embedded.pretrain --work pretrain

Three phases. A convolutional stem is taught by an EfficientNet-Lite0 that knows ImageNet (`distil.py`). While it stays as
it is, the CLIP above it learns by four losses; then both go on together. Contrastive with soft targets: in a batch,
every image that a caption describes is its positive. State: the class token must prefer the abnormal wording of a
caption pair for damaged images. Patch: so must the V-V patch tokens inside the defect mask, which is what makes anomaly
maps work (without it they are near chance). A linear probe of the class token gets the contrastive part going. Families
of the auxiliary and the held-out split are never generated here. Needs the extra `pretrain`: the teacher, and
scikit-image for its sample photographs.
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone import layer_norm, project_patches, resize_positions, two_streams
from models.embedded import DPAM_LAYERS, FOLDER, IMAGE_SIZE
from models.embedded.captions import Caption, all_phrases, random_captions, state_pairs, tokens
from models.embedded.distil import distil, save
from models.embedded.pool import DEFECT_NAMES, FAMILIES, SCENE_SIZE, Batch, Pool, make_pool
from models.prompts import tokenize
from models.stem import ConvStem

CONFIG: dict[str, Any] = {
    "embed_dim": 192,
    "quick_gelu": True,
    "conv_stem": True,
    "vision_cfg": {"image_size": 192, "layers": 4, "width": 192, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 12},
}
TEMPERATURE = 0.07
CAPTIONS = 32  # a step
CONE = 14.0  # see narrow_cone


# --- the model and its losses -----------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Spelled out: at 65 tokens its backward in bf16 takes a fifth of the time of the fused one on a CPU."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v


@lru_cache(maxsize=1)
def used_tokens() -> Tensor:
    """Ids of all tokens that captions can contain, and of AnomalyCLIP's own prompts."""
    return torch.cat([tokens(all_phrases(FAMILIES)).flatten(), tokenize(12, 77).flatten()]).unique()


def compact_ids(ids: Tensor) -> Tensor:
    """CLIP token ids -> rows of the compact table; ids that were never met share the last row."""
    used = used_tokens()
    place = torch.searchsorted(used, ids.contiguous()).clamp(max=len(used) - 1)
    return torch.where(used[place] == ids, place, len(used))


def encode_text(clip: Any, ids: Tensor) -> Tensor:
    """Normalised text features (n, D); ids (n, T) may be cut behind the longest caption, the tower is causal."""
    x = clip.token_embedding(compact_ids(ids)) + clip.positional_embedding[: ids.shape[1]]
    for block in clip.transformer.resblocks:
        x = block(x, attn_mask=clip.attn_mask[: ids.shape[1], : ids.shape[1]])
    x = clip.ln_final(x[torch.arange(len(ids)), ids.argmax(-1)])
    return F.normalize((x @ clip.text_projection).float(), dim=-1)


def described(captions: list[Caption], batch: Batch) -> Tensor:
    """(images, captions) float: 1 where the caption is true of the image."""
    family = torch.tensor([-1 if c.family is None else FAMILIES.index(c.family) for c in captions])
    damaged = torch.tensor([c.damaged for c in captions])
    defect = torch.tensor([-1 if c.defect is None else DEFECT_NAMES.index(c.defect) for c in captions])
    same_family = (family == -1) | (batch.family[:, None] == family)
    same_state = (batch.state[:, None] >= 0) == damaged
    same_defect = (defect == -1) | (batch.state[:, None] == defect)
    return (same_family & same_state & same_defect).float()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """Symmetric cross-entropy to soft targets: the true captions of an image share its probability, and vice versa."""
    logits = scale.exp().clamp(max=100) * image @ text.T
    losses = [
        F.cross_entropy(view, target / target.sum(1, keepdim=True).clamp(min=1))
        for view, target in ((logits, positives), (logits.T, positives.T))
    ]
    return torch.stack(losses).mean()


def state_loss(image: Tensor, direction: Tensor, damaged: Tensor) -> Tensor:
    """Binary cross-entropy of the abnormal-minus-normal cosine; image (B, D), direction (K, D), damaged (B,)."""
    logits = image @ direction.T / TEMPERATURE
    target = damaged[:, None].expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(0.5))  # two damaged to one normal


def probe_loss(logits: Tensor, batch: Batch, damaged: Tensor) -> Tensor:
    """Family and state from the class token by a linear layer, logits (B, families + 1).

    Image and text features begin nearly constant, which is a saddle of the contrastive loss: the probe leads away from it.
    """
    state = F.binary_cross_entropy_with_logits(logits[:, -1], damaged, pos_weight=torch.tensor(0.5))
    return F.cross_entropy(logits[:, :-1], batch.family) + 2 * state


def patch_loss(patches: Tensor, direction: Tensor, masks: Tensor) -> Tensor:
    """Weighted BCE and dice of patch logits against the mask's share of each patch; patches (B, P, D), masks (B, S, S)."""
    side = round(patches.shape[1] ** 0.5)
    covered = F.adaptive_avg_pool2d(masks[:, None], side).flatten(1)  # B P
    target = (covered * 4).clamp(max=1)[..., None].expand(-1, -1, len(direction))
    logits = F.normalize(patches, dim=-1) @ direction.T / TEMPERATURE  # B P K
    bce = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum(1) + 1
    dice = 1 - (overlap / (probability.sum(1) + target.sum(1) + 1)).mean()
    return bce + dice


def facts(batch: Batch, chosen: np.ndarray) -> tuple[list[str], list[str | None]]:
    """Family and kind of defect of the chosen images, as words."""
    families = [FAMILIES[i] for i in batch.family[chosen].tolist()]
    return families, [None if i < 0 else DEFECT_NAMES[i] for i in batch.state[chosen].tolist()]


def training_loss(clip: Any, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    visual = clip.visual
    grid = batch.images.shape[-1] // CONFIG["vision_cfg"]["patch_size"]
    dpam_layers = DPAM_LAYERS if rng.random() < 0.75 else 0  # plain patch features stay usable too
    captions = random_captions(rng, *facts(batch, rng.permutation(len(batch.state))[:CAPTIONS]))
    normal, abnormal = state_pairs(rng, FAMILIES, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        depth = CONFIG["vision_cfg"]["layers"]
        positions = resize_positions(visual.positional_embedding, grid)
        class_token, (vv,) = two_streams(visual, positions, batch.images, (depth,), dpam_layers, attention)
        text = encode_text(clip, tokens([c.text for c in captions] + normal + abnormal))
    class_token, patches = class_token.float(), project_patches(visual, vv.float())
    normed_token = layer_norm(visual.ln_post, class_token)
    image = F.normalize(normed_token @ visual.proj, dim=-1)
    bare_image = F.normalize(class_token @ visual.proj, dim=-1)  # AnomalyCLIP reads the class token without ln_post
    text, n, a = text.split([len(captions), len(normal), len(abnormal)])
    damaged = (batch.state >= 0).float()
    parts = {
        "contrastive": contrastive_loss(image, text, clip.logit_scale, described(captions, batch)),
        "state": state_loss(image, a - n, damaged) + state_loss(bare_image, a - n, damaged),
        "probe": 0.5 * probe_loss(clip.probe(normed_token), batch, damaged),
        "patch": 2 * patch_loss(patches, a - n, batch.masks),
    }
    return torch.stack(list(parts.values())).sum(), {name: part.item() for name, part in parts.items()}


# --- the loop ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """Steps above a frozen stem, or of stem and CLIP together; `whole` of them, the last, see whole scenes."""

    name: str
    first: int  # number of its first step: no batch is drawn twice
    steps: int
    whole: float
    peak_lr: float
    stem_lr: float  # of the learning rate of all else; 0 leaves the stem as it is
    warm: int = 200  # steps

    def lr(self, step: int) -> float:
        """Linear warm-up over `warm` steps, then cosine to a twentieth."""
        warm = min(1.0, (step + 1) / self.warm)
        return self.peak_lr * warm * float(0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / self.steps)))

    def size(self, step: int) -> int:
        """Pixels of a side: crops of 128, or whole scenes."""
        return 128 if step < (1 - self.whole) * self.steps else SCENE_SIZE


def build_clip(stem: ConvStem, seed: int) -> Any:
    """With a token table of the used tokens and one row for all others (see expand_vocabulary)."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    text = CONFIG["text_cfg"] | {"vocab_size": len(used_tokens()) + 1}
    clip: Any = CLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], text, quick_gelu=True)
    clip.visual.conv1 = stem
    clip.probe = torch.nn.Linear(CONFIG["vision_cfg"]["width"], len(FAMILIES) + 1)  # see probe_loss; not exported
    return clip


class Optimizers:
    """Muon for the matrices inside the vision blocks (fewer images than AdamW to the same losses), AdamW for the rest."""

    def __init__(self, clip: Any, stem_lr: float) -> None:
        inside = [p for n, p in clip.named_parameters() if n.startswith("visual.transformer") and p.ndim == 2]
        stem = [p for p in clip.visual.conv1.blocks.parameters() if p.requires_grad]
        chosen = {id(p) for p in (*inside, *stem)}
        others = [p for p in clip.parameters() if id(p) not in chosen and p.requires_grad]
        groups = [{"params": others, "gain": 1.0}] + [{"params": stem, "gain": stem_lr}] * bool(stem)
        self.parts = (
            torch.optim.Muon([{"params": inside, "gain": 1.0}], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, lr: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["gain"]
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[Any]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[Any]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def train(
    pool: Pool, clip: Any, phase: Phase, scenes: int, seed: int, checkpoint: Path, stop: int | None = None
) -> Any:
    """The moving average of the weights after a step (default: the last), or gone on from the checkpoint."""
    stop = phase.steps if stop is None else stop
    clip.visual.conv1.blocks.requires_grad_(phase.stem_lr > 0)
    optimizer = Optimizers(clip.train(), phase.stem_lr)
    average, start = copy.deepcopy(clip), 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        clip.load_state_dict(saved["clip"])
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        start = saved["step"]
    clock = time.monotonic()
    for step in range(start, stop):
        number = phase.first + step
        batch = pool.draw(scenes, phase.size(step), torch.Generator().manual_seed(seed * 1_000_003 + number))
        loss, parts = training_loss(clip, batch, np.random.default_rng((seed, number)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step(phase.lr(step))
        decay = min(0.998, (1 + step) / (10 + step))
        for kept, value in zip(average.state_dict().values(), clip.state_dict().values(), strict=True):
            kept.lerp_(value, 1 - decay)
        if step % 20 == 0:
            rate = (step - start + 1) * 3 * scenes / (time.monotonic() - clock)
            losses = (f"{name} {value:.3f}" for name, value in parts.items())
            print(f"{phase.name} {step}/{phase.steps}", *losses, f"{rate:.0f} images/s", flush=True)
        if step % 100 == 99 or step == stop - 1:
            state = {
                "clip": clip.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
                "step": step + 1,
            }
            save(state, checkpoint)
    return average


def export(average: dict[str, Tensor], folder: Path) -> None:
    """weights.safetensors (fp16, see narrow_cone and expand_vocabulary) and config.json, both for images of IMAGE_SIZE."""
    from safetensors.torch import save_file

    table, vision = average["visual.positional_embedding"], CONFIG["vision_cfg"]
    average = average | {"visual.positional_embedding": resize_positions(table, IMAGE_SIZE // vision["patch_size"])}
    exported = {name for name in average if name != "attn_mask" and not name.startswith("probe.")}
    state = {name: value.half().contiguous() for name, value in narrow_cone(average).items() if name in exported}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state | {"token_embedding.ids": used_tokens().int()}, folder / "weights.safetensors")
    config = CONFIG | {"vision_cfg": vision | {"image_size": IMAGE_SIZE}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def narrow_cone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with one constant vector of CONE typical lengths added to every patch feature, by the bias of ln_post.

    The features of a large CLIP fill a narrow cone, so cosines to two texts differ by little and AnomalyCLIP's softmax at a
    temperature of 0.07 stays gradual. Ours fill the sphere: learned prompts drive maps to 0 and 1, and equidistant
    thresholds (the published AUPRO) see nothing between. CONE: see the model card.
    """
    gain, bias, proj = (state[f"visual.{name}"] for name in ("ln_post.weight", "ln_post.bias", "proj"))
    length = ((gain[:, None] * proj).square().sum() + (bias @ proj).square().sum()).sqrt()
    axis = F.normalize(torch.randn(proj.shape[1], generator=torch.Generator().manual_seed(0)), dim=0)
    shift = torch.linalg.lstsq(proj.T, axis[:, None]).solution[:, 0]  # shift @ proj = axis
    return state | {"visual.ln_post.bias": bias + CONE * length * shift}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("pretrain"), help="scenes and checkpoint (default: pretrain)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where weights and config go (default: the package)")
    parser.add_argument("--pool", type=int, default=20_480, help="number of generated scenes")
    parser.add_argument(
        "--stem-steps", type=int, nargs=3, default=[1500, 1000, 300], metavar="STEPS", help="see distil.py"
    )
    parser.add_argument("--steps", type=int, default=1800, help="above the frozen stem")
    parser.add_argument("--joint-steps", type=int, default=640, help="of stem and CLIP together")
    parser.add_argument("--scenes", type=int, default=48, help="scenes a step, three images each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pool = Pool(make_pool(args.work / "scenes", args.pool, args.seed))
    stem = distil(pool, CONFIG["vision_cfg"]["width"], args.stem_steps, args.scenes // 3, args.seed, args.work)
    clip = build_clip(stem, args.seed)
    for phase in (
        Phase("frozen stem", 0, args.steps, whole=0.1, peak_lr=2e-3, stem_lr=0.0),
        Phase("joint", args.steps, args.joint_steps, whole=0.2, peak_lr=6e-4, stem_lr=0.1, warm=40),
    ):
        clip = train(pool, clip, phase, args.scenes, args.seed, args.work / f"{phase.name.replace(' ', '-')}.pt")
    export(clip.state_dict(), args.out)


if __name__ == "__main__":
    main()
