"""Object-agnostic prompts (AnomalyCLIP, sections 3.2-3.3): learnable words before "object." and "damaged object.".

The text tower is frozen; learnable are the context vectors of both prompts and the compound prompts, which replace the
first context tokens again before text blocks 2 to `depth`. Only the tokens up to the end-of-text token are run: the text
tower is causal and nothing behind that token is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.weights import first_sentence

PHRASES = ("object.", "damaged object.")  # index 0 normal, 1 abnormal
WORDS = 5  # tokens beside the context: start, at most three of the phrase, end
INIT_STD = 0.02


class PromptLearner(nn.Module):
    """The learned tensors of AnomalyCLIP, under the names of the published checkpoints.

    n_ctx context vectors a prompt; compound prompts of deep_ctx vectors enter before text blocks 2..depth (1-based), so
    there are depth - 1 of them. Fresh tensors are N(0, 0.02), drawn from `generator` (default: torch's global one).
    """

    def __init__(
        self,
        backbone: Backbone,
        n_ctx: int = 12,
        depth: int = 9,
        deep_ctx: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        clip: Any = backbone.clip
        if clip.transformer is None:
            raise ValueError("this backbone was loaded without its text tower: prompts cannot be learned on it")
        blocks, width = len(clip.transformer.resblocks), clip.token_embedding.weight.shape[1]
        if not 1 <= depth <= blocks:
            raise ValueError(f"depth {depth} must lie between 1 and the {blocks} blocks of the text tower")
        if not 1 <= deep_ctx <= n_ctx:
            raise ValueError(f"deep_ctx {deep_ctx} must lie between 1 and n_ctx {n_ctx}")
        if n_ctx + WORDS > clip.context_length:
            raise ValueError(f"n_ctx {n_ctx} leaves no room for the words: at most {clip.context_length - WORDS} fit")

        def fresh(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).normal_(std=INIT_STD, generator=generator))

        self.n_ctx, self.depth, self.deep_ctx = n_ctx, depth, deep_ctx
        self.ctx_pos, self.ctx_neg = fresh(1, 1, n_ctx, width), fresh(1, 1, n_ctx, width)
        self.compound_prompts_text = nn.ParameterList(fresh(deep_ctx, width) for _ in range(depth - 1))
        object.__setattr__(self, "backbone", backbone)  # not a submodule: its parameters are not learned
        self.tokens = tokenize(n_ctx, clip.context_length)
        self.end_of_text = self.tokens.argmax(dim=-1)  # the end token has the largest id

    def forward(self) -> Tensor:
        """Text features of the two prompts, (2, D), not normalised."""
        clip: Any = self.backbone.clip
        device = clip.positional_embedding.device
        length = int(self.end_of_text.max()) + 1
        embedded = clip.token_embedding(self.tokens[:, :length].to(device))  # 2 T W
        context = torch.cat([self.ctx_pos[0], self.ctx_neg[0]]).to(device)  # 2 n_ctx W
        x = torch.cat([embedded[:, :1], context, embedded[:, 1 + self.n_ctx :]], dim=1)
        x = x + clip.positional_embedding[:length]
        mask = clip.attn_mask[:length, :length].to(device)
        for number, block in enumerate(clip.transformer.resblocks):
            if 1 <= number < self.depth:
                x = self.insert_compound_prompt(x, self.compound_prompts_text[number - 1])
            x = block(x, attn_mask=mask)
        x = clip.ln_final(x)[torch.arange(2, device=device), self.end_of_text.to(device)]
        return x @ clip.text_projection

    def insert_compound_prompt(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Overwrite positions 1..deep_ctx of both sequences (2, T, W) with one compound prompt (deep_ctx, W).

        Rounded to fp16 as in the published code; expanding first makes the gradient round once a prompt copy.
        """
        prompt = prompt.to(x.device).expand(2, -1, -1).half().to(x.dtype)
        return torch.cat([x[:, :1], prompt, x[:, 1 + self.deep_ctx :]], dim=1)

    def text_features(self) -> Tensor:
        """L2-normalised text features (2, D): normal, abnormal."""
        features = self()
        return features / features.norm(dim=-1, keepdim=True)

    def load_official(self, checkpoint: str | Path | Mapping[str, Any]) -> list[str]:
        """Load a checkpoint of the published code; returns the names of the tensors that AnomalyCLIP never uses.

        The embedded words around the context (`token_…`) are CLIP's own: they have to be our words, and of this CLIP.

        checkpoint: a .pth file (read with weights_only=True) or its content. Raises ValueError where it is none, its shapes
        do not fit this backbone and these lengths, or it was learned on another CLIP.
        """
        state = read_official(checkpoint)
        own = self.state_dict()
        wrong = [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            if name in state
            else f"{name} is missing"
            for name, value in own.items()
            if name not in state or state[name].shape != value.shape
        ]
        if wrong:
            raise ValueError(f"the checkpoint does not fit this backbone and these prompts: {'; '.join(wrong)}")
        surplus = sorted(name for name in set(state) - set(own) if not name.startswith("token"))
        if deeper := [name for name in surplus if name.startswith("compound_prompts_text.")]:
            raise ValueError(f"the checkpoint has deeper prompts than depth {self.depth}: {', '.join(deeper)}")
        if broken := [name for name in own if not state[name].isfinite().all()]:
            raise ValueError(f"the checkpoint holds NaN or infinity: {', '.join(broken)}")
        for side, own_tokens in zip(("pos", "neg"), self.tokens, strict=True):
            tokens = state.get(f"tokenized_prompts_{side}")
            if tokens is not None and not torch.equal(tokens.long().flatten(), own_tokens):
                raise ValueError(f"the checkpoint was learned on other words than {' and '.join(map(repr, PHRASES))}")
            for part, where in (("prefix", slice(0, 1)), ("suffix", slice(1 + self.n_ctx, None))):
                words = state.get(f"token_{part}_{side}")
                if words is not None and not self.are_words(words, own_tokens[where]):
                    raise ValueError("the checkpoint was learned on another CLIP: its words around the prompts differ")
        self.load_state_dict({name: state[name] for name in own})
        return surplus

    def are_words(self, embedded: Tensor, tokens: Tensor) -> bool:
        """Whether these are the embeddings (…, T, W) of tokens (T,), to the rounding of fp16, up to the end of the text."""
        clip: Any = self.backbone.clip
        own = clip.token_embedding.weight[tokens].cpu()
        embedded, used = embedded.flatten(0, -2), int(tokens.argmax()) + 1
        return embedded.shape == own.shape and torch.allclose(embedded[:used], own[:used], rtol=1e-3, atol=1e-6)


def tokenize(n_ctx: int, context_length: int) -> Tensor:
    """CLIP token ids (2, context_length) of "X … X object." and "X … X damaged object."."""
    from open_clip.tokenizer import SimpleTokenizer

    texts = [" ".join(["X"] * n_ctx) + " " + phrase for phrase in PHRASES]
    return SimpleTokenizer(context_length=context_length)(texts)


def read_official(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The prompt learner's tensors of a published checkpoint, given as a file or as its content."""
    if isinstance(checkpoint, (str, Path)):
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"the checkpoint {str(checkpoint)!r} does not exist") from None
        except Exception as error:  # pickle, zip and torch errors alike: not a file that may be trusted
            reason = f"{type(error).__name__}: {first_sentence(error)}"
            raise ValueError(f"{str(checkpoint)!r} cannot be read safely as a checkpoint: {reason}") from error
    else:
        content = checkpoint
    if not isinstance(content, Mapping) or "prompt_learner" not in content:
        raise ValueError("this is no AnomalyCLIP checkpoint: it has no entry 'prompt_learner'")
    learner = content["prompt_learner"]
    if not isinstance(learner, Mapping) or not all(is_tensor(name, value) for name, value in learner.items()):
        raise ValueError(
            "this is no AnomalyCLIP checkpoint: its entry 'prompt_learner' holds other things than real, dense tensors"
        )
    return {name: torch.as_tensor(value).float() for name, value in learner.items()}


def is_tensor(name: Any, value: Any) -> bool:
    """A named, real, dense tensor or array."""
    if isinstance(value, Tensor):
        return isinstance(name, str) and value.layout == torch.strided and not value.is_complex()
    return isinstance(name, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
