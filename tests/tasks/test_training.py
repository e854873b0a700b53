"""Training material, cached features, and learning that goes on where it was killed."""

import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from models.detector import read_bundle_config
from models.preprocess import preprocess
from models.training import extract_features
from tasks.backbones import make_geometry, map_name, open_backbone
from tasks.errors import InputError
from tasks.features import CachedFeatures, compute_features, open_features, training_material
from tasks.manifest import ingest_source, read_manifest
from tasks.registry import CHAMPION_URI, EXPERIMENT, MODEL_NAME, bundle_folder, resolve_model, use_tracking
from tasks.store import Store
from tasks.training import EpochLoss, Trained, TrainingPlan, learn, learn_prompts, plan_key, split_by_class
from tests.models import seeded
from tests.models.conftest import relative_error
from tests.tasks.conftest import photo, write_photos

GEOMETRY = make_geometry("embedded", 96)


@pytest.fixture
def store(tracked_store: Store) -> Store:
    return tracked_store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One class in MVTec's layout: a train split, good ones, and holes with masks."""
    root = tmp_path / "nut"
    write_photos(root / "train/good", range(3))
    write_photos(root / "test/good", range(10, 16))
    write_photos(root / "test/hole", range(20, 25))
    for number in range(20, 25):
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 20:40] = 255
        (root / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / f"ground_truth/hole/{number:03d}_mask.png")
    return root


def ingest(store: Store, source: Path, layout: str, name: str = "nut") -> None:
    ingest_source.fn(store.uri, name, str(source), layout, False)


def cached_features(store: Store) -> CachedFeatures:
    key = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    return open_features(Path(store.uri) / "cache/features" / key)


def plan(**options: Any) -> TrainingPlan:
    return TrainingPlan("embedded", GEOMETRY, **options)


def test_only_the_test_split_is_trained_on_as_published(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    rows = training_material(store, ["nut"]).rows
    assert len(rows) == 11
    assert {row["split"] for row in rows} == {"test"}


def test_features_are_computed_once(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(store, source, "mvtec")
    key = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)

    def fail(*arguments: object) -> None:
        raise AssertionError("the tower ran again")

    monkeypatch.setattr("tasks.features.extract_features", fail)
    assert compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY) == key


def test_cached_features_are_those_of_the_images(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    cached = cached_features(store)
    assert cached.features.image.shape == (11, 192)
    assert cached.features.patches[0].shape == (11, 36, 192)
    assert cached.labels.sum() == 5
    assert cached.has_mask.all()
    assert (cached.masks.flatten(1).any(dim=1) == cached.labels.bool()).all()
    rows = training_material(store, ["nut"]).rows
    assert cached.labels.tolist() == [row["label"] for row in rows]
    for place in (0, 10):
        image = preprocess(Image.open(rows[place]["uri"].removeprefix("file://")), 96)[None]
        alone = extract_features(open_backbone("embedded", 96), image, GEOMETRY.feature_layers, GEOMETRY.dpam_layers)
        assert relative_error(cached.features.image[place], alone.image[0].numpy()) < 1e-4
        assert relative_error(cached.features.patches[0][place], alone.patches[0][0].numpy()) < 1e-4


def test_an_unreadable_image_is_left_out(store: Store, source: Path) -> None:
    (source / "test/good/note.png").write_text("a note")
    ingest(store, source, "mvtec")
    cached = cached_features(store)
    assert (len(cached.features), len(cached.usable)) == (12, 11)


def test_an_image_out_of_reach_ends_training_and_leaves_no_features_without_it(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    image = next((source / "test").rglob("*.png"))
    image.rename(source / "elsewhere.png")
    with pytest.raises(InputError, match=f"training needs .*{image.name}, which cannot be read now .missing"):
        cached_features(store)
    (source / "elsewhere.png").rename(image)
    cached = cached_features(store)
    assert len(cached.usable) == len(cached.features) == 11


def test_without_masks_the_image_loss_alone_is_trained(store: Store, source: Path) -> None:
    ingest(store, source / "test", "folders")
    features = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    loss = learn_prompts.fn(store.uri, ["nut"], plan(epochs=1), features).loss
    assert loss.local == 0
    assert loss.total == loss.image > 0


def test_learning_that_was_killed_ends_with_the_same_prompts(store: Store, source: Path, tmp_path: Path) -> None:
    ingest(store, source, "mvtec")
    cached = cached_features(store)
    backbone = open_backbone("embedded", 96)

    def die_after_two(loss: EpochLoss) -> None:
        if loss.epoch == 2:
            raise KeyboardInterrupt

    history: list[EpochLoss] = []
    undisturbed, *_ = learn(plan(epochs=4), backbone, cached, tmp_path / "quiet.pt", history.append)
    with pytest.raises(KeyboardInterrupt):
        learn(plan(epochs=4), backbone, cached, tmp_path / "killed.pt", die_after_two)
    heard: list[EpochLoss] = []
    resumed, *_ = learn(plan(epochs=4), backbone, cached, tmp_path / "killed.pt", heard.append)
    assert heard == history
    for before, after in zip(undisturbed.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(before, after)


def test_learning_lowers_the_loss_and_depends_on_the_seed(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    features = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    plans = plan(epochs=1), plan(epochs=30), plan(epochs=1, seed=3)
    first, longer, other = (learn_prompts.fn(store.uri, ["nut"], each, features) for each in plans)
    assert longer.loss.total < first.loss.total
    assert len({trained.model.digest for trained in (first, longer, other)}) == 3


def test_losses_and_what_was_trained_are_in_the_run_of_the_registered_version(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    features = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    model, loss, *_ = learn_prompts.fn(store.uri, ["nut"], plan(epochs=2), features)
    client = use_tracking(store)
    run = client.get_run(client.get_model_version(model.name, model.version).run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["collections"], run.data.params["images"], run.data.params["epochs"]) == ("nut", "11", "2")
    curve = client.get_metric_history(run.info.run_id, "loss_total")
    assert [point.step for point in curve] == [1, 2]
    assert curve[-1].value == loss.total
    assert resolve_model(store, CHAMPION_URI) == model


def test_a_run_that_was_killed_is_ended_by_the_one_that_goes_on(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    features = compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    folder = Path(store.uri) / "cache/features" / features
    killed, other = plan_key(plan(epochs=2), folder), plan_key(plan(epochs=3), folder)
    client = use_tracking(store)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    left = {key: client.create_run(experiment, tags={"training": key}).info.run_id for key in (killed, other)}
    learn_prompts.fn(store.uri, ["nut"], plan(epochs=2), features)
    assert client.get_run(left[killed]).info.status == "KILLED"
    assert client.get_run(left[other]).info.status == "RUNNING"
    learn_prompts.fn(store.uri, ["nut"], plan(epochs=2), features)
    ended = [run.info.status for run in client.search_runs([experiment], f"tags.training = '{killed}'")]
    assert sorted(ended) == ["FINISHED", "FINISHED", "KILLED"]


def test_a_mask_that_was_drawn_anew_is_trained_on_once_the_features_are_removed(store: Store, source: Path) -> None:
    """The manifest is the same, and so is the name of the features."""
    ingest(store, source, "mvtec")

    def trained() -> Trained:
        return learn_prompts.fn(
            store.uri, ["nut"], plan(), compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
        )

    first = trained()
    mask = source / "ground_truth/hole/020_mask.png"
    ImageOps.invert(Image.open(mask).convert("L")).save(mask)
    shutil.rmtree(Path(store.uri) / "cache/features")
    assert trained().model.digest != first.model.digest


def test_two_trainings_at_once_share_their_features(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compute_features.fn, store.uri, ["nut"], "embedded", GEOMETRY) for _ in range(2)]
        keys = {job.result() for job in jobs}
    assert [path.name for path in (Path(store.uri) / "cache/features").iterdir()] == list(keys)


def test_features_that_cannot_be_finished_leave_nothing_behind(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    (source / "ground_truth/hole/020_mask.png").write_text("no image any more")
    with pytest.raises(InputError, match=r"020_mask\.png cannot be read"):
        compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)
    assert list((Path(store.uri) / "cache/features").iterdir()) == []


def test_images_of_which_none_can_be_read_are_refused(store: Store, source: Path) -> None:
    for path in source.rglob("test/*/*.png"):
        path.write_text("a note")
    ingest(store, source, "mvtec")
    with pytest.raises(InputError, match="none of the labelled images can be read"):
        compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)


def test_a_collection_without_labels_cannot_train(store: Store, source: Path) -> None:
    ingest(store, source, "flat")
    with pytest.raises(InputError, match="nut has 0 normal and 0 anomalous ones"):
        compute_features.fn(store.uri, ["nut"], "embedded", GEOMETRY)


@pytest.mark.parametrize("kept", ["good", "hole"])
def test_one_kind_of_image_alone_cannot_train(store: Store, source: Path, kept: str) -> None:
    ingest(store, source / "test" / kept, "folders")
    with pytest.raises(InputError, match="training needs labelled normal and anomalous images"):
        training_material(store, ["nut"])


def test_the_papers_geometry_is_the_default_of_its_backbone() -> None:
    geometry = make_geometry("ViT-L-14-336-quickgelu:openai")
    assert (geometry.image_size, geometry.feature_layers, geometry.dpam_layers) == (518, (24,), 19)


def test_a_backbone_that_does_not_exist_is_said() -> None:
    with pytest.raises(InputError, match="did you mean"):
        make_geometry("ViT-L-14-337:openai")


def test_several_collections_are_trained_on_together(store: Store, source: Path, tmp_path: Path) -> None:
    ingest(store, source, "mvtec")
    for state, number in (("good", 1), ("bent", 2)):
        (tmp_path / "second" / state).mkdir(parents=True)
        photo(number).save(tmp_path / "second" / state / "a.png")
    ingest(store, tmp_path / "second", "folders", "second")
    assert len(training_material(store, ["nut", "second"]).rows) == 13
    with pytest.raises(InputError, match="a collection is named twice: nut, second, nut"):
        training_material(store, ["nut", "second", "nut"])


@pytest.fixture
def two_classes(store: Store, source: Path, tmp_path: Path) -> str:
    """Key of the features of the class `nut` and of a class `bolt`."""
    ingest(store, source, "mvtec")
    write_photos(tmp_path / "second/bolt/good", range(30, 34))
    write_photos(tmp_path / "second/bolt/bent", range(40, 44))
    ingest(store, tmp_path / "second", "folders", "second")
    return str(compute_features.fn(store.uri, ["nut", "second"], "embedded", GEOMETRY))


def test_classes_that_are_held_back_give_a_validation_curve_and_train_nothing(store, two_classes, tmp_path) -> None:
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    training, held_back = split_by_class(cached, plan(validation_share=0.5))
    assert len(training) + len(held_back) == len(cached.usable) == 19
    assert set(cached.classes[training]).isdisjoint(cached.classes[held_back])
    heard: list[EpochLoss] = []
    learn(plan(epochs=2, validation_share=0.5), open_backbone("embedded", 96), cached, tmp_path / "a.pt", heard.append)
    assert [loss.validation is not None for loss in heard] == [True, True]


def test_patience_stops_and_takes_the_best_epoch_even_after_a_kill(store, two_classes, tmp_path) -> None:
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    backbone, heard = open_backbone("embedded", 96), list[EpochLoss]()
    eager = plan(epochs=40, lr=0.05, validation_share=0.5, patience=2)
    prompts, best, epochs = learn(eager, backbone, cached, tmp_path / "a.pt", heard.append)
    assert len(heard) < 40
    assert best == min(heard, key=lambda loss: loss.validation)
    assert heard[-1].epoch == best.epoch + 2 == epochs
    again, same, _ = learn(eager, backbone, cached, tmp_path / "a.pt", lambda _: None)
    assert same == best
    assert all(
        torch.equal(a, b) for a, b in zip(prompts.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_training_that_diverges_registers_nothing_and_says_at_which_rate(store, two_classes, tmp_path) -> None:
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    wild = plan(epochs=40, lr=1e6)
    with pytest.raises(InputError, match="diverged in epoch 1 at a learning rate of"):
        learn(wild, open_backbone("embedded", 96), cached, tmp_path / "a.pt", lambda _: None)


def test_a_validation_share_that_leaves_no_class_to_train_on_is_refused(store, two_classes) -> None:
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    with pytest.raises(InputError, match="leaves none of 2"):
        split_by_class(cached, plan(validation_share=0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"lr": -1.0}, "learning rate must be a number above 0, not -1.0"),
        ({"lr": float("nan")}, "not nan"),
        ({"lr": float("inf")}, "not inf"),
        ({"seed": -5}, "seed must lie between 0 and 4294967295, not -5"),
        ({"seed": 2**32}, "not 4294967296"),
        ({"validation_share": -0.5}, "at least 0 and below 1, not -0.5"),
        ({"validation_share": 1.0}, "not 1.0"),
        ({"patience": -1, "validation_share": 0.5}, "patience must be at least 1"),
        ({"patience": 3}, "needs a validation share"),
    ],
)
def test_a_plan_that_nothing_can_be_learned_with_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**options)


def test_summary_bundle_and_run_tell_what_was_trained_and_for_how_long(store, two_classes) -> None:
    eager = plan(epochs=40, lr=0.05, validation_share=0.5, patience=2)
    trained = learn_prompts.fn(store.uri, ["nut", "second"], eager, two_classes)
    assert trained.epochs == trained.loss.epoch + 2 < 40
    assert trained.images + trained.held_back == 19
    assert trained.images in (8, 11)
    with bundle_folder(store, trained.model) as folder:
        facts = read_bundle_config(folder).training
    expected = {"images": trained.images, "held_back_images": trained.held_back, "max_epochs": 40,
                "epochs": trained.epochs, "chosen_epoch": trained.loss.epoch, "map": "last"}  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    client = use_tracking(store)
    params = client.get_run(client.get_model_version(MODEL_NAME, trained.model.version).run_id).data.params
    assert {name: params[name] for name in expected} == {name: str(value) for name, value in expected.items()}
    snapshots = [read_manifest(store, name).digest for name in ("nut", "second")]
    assert (facts["manifest_digests"], params["manifest_digests"]) == (snapshots, ",".join(snapshots))


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("embedded", (1, 2, 3, 4)), ("ViT-L-14-336-quickgelu", (6, 12, 18, 24)), ("ViT-B-16-quickgelu", (3, 6, 9, 12))],
)
def test_both_definitions_of_the_map_have_a_name(spec: str, layers: tuple[int, ...]) -> None:
    assert make_geometry(spec, map_definition="multi-layer").feature_layers == layers
    assert make_geometry(spec).feature_layers == layers[-1:]
    assert [map_name(spec, found) for found in (layers, layers[-1:], layers[1:])] == [
        "multi-layer", "last", f"layers {', '.join(map(str, layers[1:]))}",
    ]  # fmt: skip
    with pytest.raises(InputError, match="'multi-layer' has layers of its own"):
        make_geometry(spec, feature_layers=(1,), map_definition="multi-layer")


@pytest.mark.parametrize("layers", [{"feature_layers": (4, 9)}, {"feature_layers": (0,)}, {"dpam_layers": 77}])
def test_layers_that_the_backbone_has_not_are_refused(layers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the backbone 'embedded' has 4 blocks"):
        make_geometry("embedded", **layers)


def test_a_class_that_cannot_be_read_is_neither_trained_on_nor_held_back(store, two_classes, tmp_path) -> None:
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    readable = dataclasses.replace(cached, usable=cached.usable[cached.classes[cached.usable] == "nut"])
    with pytest.raises(InputError, match="leaves none of 1 classes to train on"):
        split_by_class(readable, plan(validation_share=0.5))


def test_prompts_that_overflow_in_the_last_step_are_refused(store, two_classes, tmp_path) -> None:
    """No loss is taken after it: the text features tell."""
    cached = open_features(Path(store.uri) / "cache/features" / two_classes)
    with pytest.raises(InputError, match="diverged in epoch 1 at a learning rate of 70000"):
        learn(plan(epochs=1, lr=7e4), open_backbone("embedded", 96), cached, tmp_path / "a.pt", lambda _: None)


def test_what_a_killed_run_left_of_features_is_removed_a_day_later(store: Store, source: Path) -> None:
    ingest(store, source, "mvtec")
    old, new = (Path(store.uri) / f"cache/features/{name}.abc.tmp" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    cached_features(store)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("RN50:openai", {}, "only plain CLIP vision transformers"),
        ("ViT-B-16-SigLIP:webli", {}, "only plain CLIP vision transformers"),
        ("embedded", {"image_size": 0}, "images of 0 pixels are less than one patch of 16"),
        ("embedded", {"image_size": -16}, "less than one patch"),
        ("embedded", {"feature_layers": []}, "must be numbers from 1 to 4"),
        ("embedded", {"feature_layers": [4, 4]}, "a feature layer is named twice: 4, 4"),
    ],
)
def test_a_geometry_that_no_tower_has_is_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_geometry(spec, **options)


def test_a_backbone_is_named_by_a_path_that_holds_in_every_folder(tmp_path: Path, monkeypatch) -> None:
    backbone = seeded.backbone(seeded.SMALL, 96)
    monkeypatch.setattr("models.weights.model_config", lambda name: seeded.SMALL)
    torch.save(backbone.clip.state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    assert open_backbone("small:weights.pt", 96).spec == f"small:{tmp_path / 'weights.pt'}"
