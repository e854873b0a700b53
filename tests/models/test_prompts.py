"""Text features of the published code, and its checkpoints."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.backbone import Backbone
from models.prompts import PromptLearner, tokenize
from tests.models import seeded
from tests.models.conftest import DATA, relative_error


def test_tokens_are_the_published_ones(golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(tokenize(12, 77).numpy(), golden["tokenized_prompts"])


def test_text_features_are_the_published_ones(small_prompts: PromptLearner, golden: dict[str, np.ndarray]) -> None:
    with torch.inference_mode():
        assert relative_error(small_prompts(), golden["text_raw"]) < 3e-6
        assert relative_error(small_prompts.text_features(), golden["text_features"]) < 3e-6


def test_deep_prompts_are_rounded_to_half_precision(small_prompts: PromptLearner) -> None:
    with torch.inference_mode():
        before = small_prompts()
        for prompt in small_prompts.compound_prompts_text:
            prompt.copy_(prompt.half().float())
        assert torch.equal(small_prompts(), before)


def test_a_published_checkpoint_is_loaded_and_what_is_unused_is_said(small_backbone) -> None:
    prompts = PromptLearner(small_backbone)
    unused = prompts.load_official(DATA / "small_prompts.pth")
    expected = seeded.prompt_tensors(seeded.SMALL)
    found = prompts.state_dict()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(value, expected[name]) for name, value in found.items())
    assert {name.split(".")[0] for name in unused} >= {"compound_prompt_projections"}


def test_a_checkpoint_of_other_shapes_is_refused(small_backbone) -> None:
    prompts = PromptLearner(small_backbone, n_ctx=8)
    with pytest.raises(ValueError, match=r"ctx_pos is \(1, 1, 12, 128\) instead of \(1, 1, 8, 128\)"):
        prompts.load_official(DATA / "small_prompts.pth")


def test_a_checkpoint_of_deeper_prompts_is_refused(small_backbone) -> None:
    with pytest.raises(ValueError, match="deeper prompts than depth 5"):
        PromptLearner(small_backbone, depth=5).load_official(DATA / "small_prompts.pth")


def test_a_file_that_is_no_checkpoint_is_refused(small_backbone, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no entry 'prompt_learner'"):
        PromptLearner(small_backbone).load_official(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not exist"):
        PromptLearner(small_backbone).load_official(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ctx_neg": torch.tensor(torch.nan)}, "NaN or infinity: ctx_neg"),
        ({"tokenized_prompts_neg": torch.zeros(1, 1, 77, dtype=torch.int32)}, "learned on other words"),
        ({"ctx_pos": "text"}, "other things than real, dense tensors"),
        ({"ctx_pos": torch.zeros(1, 1, 12, 128, dtype=torch.complex64)}, "other things than real, dense tensors"),
        ({"token_prefix_neg": torch.zeros(1, 1, 1, 128)}, "learned on another CLIP"),
        ({"token_suffix_pos": torch.zeros(1, 1, 64, 8)}, "learned on another CLIP"),
    ],
)
def test_a_checkpoint_that_cannot_score_is_refused(small_backbone, changed: dict[str, Any], message: str) -> None:
    state = torch.load(DATA / "small_prompts.pth", weights_only=True)["prompt_learner"]
    for name, value in changed.items():
        state[name] = (
            torch.full_like(state[name], value) if isinstance(value, torch.Tensor) and not value.ndim else value
        )
    with pytest.raises(ValueError, match=message):
        PromptLearner(small_backbone).load_official({"prompt_learner": state})


def test_the_words_around_the_context_are_those_of_the_clip(small_backbone) -> None:
    """To the rounding of fp16; behind the end of the text anything may stand."""
    state = torch.load(DATA / "small_prompts.pth", weights_only=True)["prompt_learner"]
    prompts = PromptLearner(small_backbone)
    known = prompts.load_official({"prompt_learner": state})
    words = small_backbone.clip.token_embedding.weight[prompts.tokens].detach()  # 2 77 W
    for side, embedded in zip(("pos", "neg"), words, strict=True):
        state[f"token_prefix_{side}"] = embedded[:1].half().view(1, 1, 1, -1)
        state[f"token_suffix_{side}"] = embedded[13:].half().view(1, 1, 64, -1).clone()
        state[f"token_suffix_{side}"][..., 40:, :] = 1.0
    assert prompts.load_official({"prompt_learner": state}) == known
    clip = copy.deepcopy(small_backbone.clip)
    with torch.no_grad():
        clip.token_embedding.weight.mul_(1.01)
    other = Backbone(clip, small_backbone.config, small_backbone.image_size, "other", "0")
    with pytest.raises(ValueError, match="learned on another CLIP"):
        PromptLearner(other).load_official({"prompt_learner": state})


def test_arrays_are_as_good_as_tensors(small_backbone) -> None:
    arrays = seeded.prompt_tensors(seeded.SMALL)
    prompts = PromptLearner(small_backbone)
    prompts.load_official({"prompt_learner": arrays})
    assert all(np.array_equal(value, arrays[name]) for name, value in prompts.state_dict().items())


def test_a_context_leaves_room_for_the_words(small_backbone) -> None:
    prompts = PromptLearner(small_backbone, n_ctx=72)
    assert prompts.end_of_text.tolist() == [75, 76]
    with pytest.raises(ValueError, match="n_ctx 73 leaves no room for the words: at most 72 fit"):
        PromptLearner(small_backbone, n_ctx=73)


def test_a_checkpoint_that_would_run_code_is_not_loaded(small_backbone, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"prompt_learner": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        PromptLearner(small_backbone).load_official(tmp_path / "evil.pth")
    assert not marker.exists()


@pytest.mark.parametrize(("options", "message"), [({"depth": 13}, "depth 13"), ({"n_ctx": 3}, "deep_ctx 4")])
def test_prompts_that_the_text_tower_cannot_hold_are_refused(small_backbone, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PromptLearner(small_backbone, **options)


def test_fresh_prompts_depend_on_their_generator_alone(small_backbone) -> None:
    first, second = (PromptLearner(small_backbone, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.ctx_pos, second.ctx_pos)
    assert float(first.ctx_pos.detach().std()) == pytest.approx(0.02, rel=0.1)
