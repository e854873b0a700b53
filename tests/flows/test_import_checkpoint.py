"""A checkpoint of the published code goes from its file to scores."""

from pathlib import Path

import pytest
import torch

from models import load_detector
from models.prompts import PromptLearner
from tasks.backbones import open_backbone
from tests.flows.conftest import Command


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """In the published format, unused projections included, for the embedded backbone."""
    prompts = PromptLearner(open_backbone("embedded", 96), generator=torch.Generator().manual_seed(1))
    tensors = dict(prompts.state_dict()) | {"compound_prompt_projections.0.weight": torch.zeros(896, 128)}
    torch.save({"prompt_learner": tensors}, tmp_path / "epoch_15.pth")
    return tmp_path / "epoch_15.pth"


def test_a_published_checkpoint_is_registered_and_scores(anomalyclip: Command, checkpoint: Path, images: Path):
    answer = anomalyclip("import-checkpoint", str(checkpoint), "--backbone", "embedded", "--image-size", "96")
    assert answer.code == 0
    assert "ignored 1 tensors that AnomalyCLIP never uses (compound_prompt_projections)" in answer.out
    anomalyclip("ingest", str(images), "--collection", "parts")
    scored = anomalyclip("score", "--collection", "parts", "--json").json
    assert (scored["model"], scored["scored"]) == ("models:/anomalyclip/1", 24)


def test_the_imported_prompts_are_those_of_the_file(anomalyclip: Command, checkpoint: Path, tmp_path: Path):
    anomalyclip("import-checkpoint", str(checkpoint), "--backbone", "embedded", "--image-size", "96")
    (config,) = (tmp_path / "store/mlartifacts").rglob("config.json")
    detector = load_detector(config.parent)
    expected = torch.load(checkpoint, weights_only=True)["prompt_learner"]
    assert all(torch.equal(value, expected[name]) for name, value in detector.prompt_tensors.items())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nothing.pth", "--backbone", "embedded"], "'nothing.pth' does not exist"),
        (["epoch_15.pth"], "could not be fetched"),
        (["epoch_15.pth", "--backbone", "ViT-B-32-quickgelu:/nowhere.pt"], "do not exist"),
        (["epoch_15.pth", "--backbone", "embedded", "--image-size", "100"], "not a multiple of the patch size"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_said(anomalyclip: Command, checkpoint: Path, options, sentence):
    answer = anomalyclip("import-checkpoint", *options)
    assert answer.code == 2
    assert sentence in answer.err
