"""The probe on encoders whose answer is known, from images to records."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.data.images import normalise_images
from ssl_equi.data.sources import DataSource
from ssl_equi.evaluation.features import FeatureStore, FrozenEncoder, cache_of
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE as TASK
from ssl_equi.evaluation.protocol import EquivarianceProtocol, ProbeProtocol
from ssl_equi.evaluation.publish import publish_results
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS, Ask, Encoding, Subject, TaskResult
from ssl_equi.evaluation.tasks import augmentation_equivariance
from ssl_equi.evaluation.tasks.augmentation_equivariance import (
    augmentation_pipeline,
    encode_augmented,
)
from ssl_equi.views.parameters import GrayscaleParameters
from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.transforms import HorizontalFlip, OccasionalTransform, Operation
from tests.evaluation.probed_by_hand import probed
from tests.fakes import ViewsInMemory

MEAN_RGB, STD_RGB = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
METRICS = ["gamma_f", "wahba_error", "composition_error", "least_squares_error"]


def make_images(num_objects: int = 20, num_views: int = 4, size: int = 16, seed: int = 0) -> ViewsInMemory:
    """Coarse random pictures without poses."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (num_objects, num_views, size // 4, size // 4, 3), dtype=np.uint8)
    images = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return ViewsInMemory(images, split="test", class_names=("a", "b"), labels=np.arange(num_objects) % 2)


class Grid(nn.Module):
    """Mean grey of 4 x 4 cells: flips and quarter turns permute the 16 features, evenly, so by a rotation."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.mean(dim=1), 4).flatten(1)


class Chaotic(nn.Module):
    """Features of an augmented image say nothing about those of the image."""

    def forward(self, images: Tensor) -> Tensor:
        weights = torch.randn(images[0].numel(), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return torch.sin(1000 * images.flatten(1).double() @ weights).float()


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 16)


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def small_encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@dataclass(frozen=True)
class Found:
    """What was measured by part, and the notes."""

    results: dict[str, TaskResult]
    notes: tuple[str, ...]


def probe(encoder: nn.Module, collection: ViewsInMemory, **changes: object) -> Found:
    """The task on parts of what an encoder makes of a split, whose heads nobody trains."""
    parts = changes.pop("parts", {"all": slice(None)})
    protocol = ProbeProtocol(augmentation_equivariance=EquivarianceProtocol(**changes))
    data = DataSource("by hand", collection, collection, collection, MEAN_RGB, STD_RGB)
    encoding = Encoding(FrozenEncoder(encoder, MEAN_RGB, STD_RGB), data, FeatureStore(None))
    cache = cache_of(torch.zeros(collection.num_objects, collection.num_views, 1), collection)
    whole = Subject("by hand", parts, cache, cache, 0, encoding=encoding)
    results, notes = {}, []
    for part in parts:
        try:
            results[part] = TASKS[TASK](Ask(cache, cache, 0, protocol, 0, part, whole, whole.made))
            notes += results[part].notes
        except TaskSkipped as reason:
            notes.append(str(reason))
    return Found(results, tuple(notes))


class QuarterTurn(OccasionalTransform[GrayscaleParameters]):
    """Turns some images, by draws that would make them grey."""

    name: ClassVar[str] = "grayscale"

    def draw(self, count: int, source_sizes: Tensor, generator: torch.Generator) -> GrayscaleParameters:
        return GrayscaleParameters(self._draw_applied(count, generator))

    def _operation(self, parameters: GrayscaleParameters) -> Operation:
        return Operation(lambda images: images.rot90(1, (2, 3)))


@pytest.fixture
def turns_and_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Augmentations that lose nothing and do not commute."""
    pipeline = ViewPipeline((HorizontalFlip(probability=0.5), QuarterTurn(probability=0.5)))
    monkeypatch.setattr(augmentation_equivariance, "augmentation_pipeline", lambda name, views: pipeline)


@pytest.mark.usefixtures("turns_and_flips")
def test_an_equivariant_encoder_scores_zero_and_its_rotations_compose():
    found = probe(Grid(), make_images(), num_augmentations=12, num_compositions=6)
    result = found.results["all"]
    assert list(result.metrics) == METRICS and result.num_samples == 80
    assert all(value < 1e-5 for value in result.metrics.values())
    assert result.baselines["wahba_error"].value > 0.5 and result.baselines["wahba_error"].name == "shuffled images"
    assert result.baselines["gamma_f"].value > 0.01 and result.baselines["gamma_f"].name == "shuffled displacements"
    for name in METRICS[2:]:
        assert result.baselines[name].value > 0.1 and result.baselines[name].name == "shuffled images"


def test_an_encoder_that_loses_all_relation_scores_like_its_baselines():
    result = probe(Chaotic(), make_images(num_objects=100)).results["all"]
    assert result.metrics["wahba_error"] == pytest.approx(result.baselines["wahba_error"].value, rel=0.03)
    assert result.metrics["composition_error"] == pytest.approx(1, abs=0.15)
    assert result.baselines["composition_error"].value == pytest.approx(1, abs=0.15)


def test_features_are_those_of_each_image_under_the_same_augmentation():
    collection, protocol = make_images(num_objects=5), EquivarianceProtocol(seed=3)
    encoder = small_encoder().eval()
    (found,) = encode_augmented([encoder], collection, MEAN_RGB, STD_RGB, protocol, batch_size=7)
    assert found.original.shape == (20, 6)
    assert found.augmented.shape == (6, 20, 6) and found.composed.shape == (3, 20, 6)

    def expected(images: Tensor) -> Tensor:
        pixels = (images.permute(0, 2, 3, 1) * 255).contiguous()
        with torch.no_grad():
            return encoder(normalise_images(pixels, MEAN_RGB, STD_RGB))

    pipeline, generator = augmentation_pipeline("mild", collection), torch.Generator().manual_seed(3)
    images = torch.from_numpy(collection.pixels).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(found.original, expected(images))
    draws = [pipeline.draw(20, source_sizes=(16, 16), generator=generator, shared_by=20) for _ in range(6)]
    for index, draw in enumerate(draws):
        augmented = pipeline.apply(images, draw)
        torch.testing.assert_close(found.augmented[index], expected(augmented))
        if index % 2 == 0:
            composed = expected(pipeline.apply(augmented, draws[index + 1]))
            torch.testing.assert_close(found.composed[index // 2], composed)
    assert not torch.allclose(found.augmented[0], found.augmented[1], atol=1e-3)


def test_several_encoders_share_the_augmented_images_and_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    collection, protocol = make_images(num_objects=20), EquivarianceProtocol(num_augmentations=3, num_compositions=1)
    encoders, applied, apply = [small_encoder(), Grid(), MeanColour()], [], ViewPipeline.apply
    arguments = (collection, MEAN_RGB, STD_RGB, protocol)
    alone = [encode_augmented([encoder], *arguments)[0] for encoder in encoders]
    monkeypatch.setattr(ViewPipeline, "apply", lambda *given: applied.append(given) or apply(*given))
    for found, expected in zip(encode_augmented(encoders, *arguments), alone, strict=True):
        for name in ("original", "augmented", "composed"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert len(applied) == 4, "three augmentations and a composition of one batch"


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_the_batch_size_plays_no_part(batch_size: int):
    arguments = ([small_encoder()], make_images(num_objects=4), MEAN_RGB, STD_RGB, EquivarianceProtocol())
    (whole,), (pieces,) = encode_augmented(*arguments), encode_augmented(*arguments, batch_size=batch_size)
    torch.testing.assert_close(whole.augmented, pieces.augmented)
    torch.testing.assert_close(whole.composed, pieces.composed)


def test_images_are_drawn_once_from_all_views_and_by_the_seed():
    collection = make_images(num_objects=30)
    chosen = [
        encode_augmented([Grid()], collection, MEAN_RGB, STD_RGB, EquivarianceProtocol(max_images=50, seed=seed))[
            0
        ].original
        for seed in (0, 0, 1)
    ]
    assert chosen[0].shape == (50, 16)
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])
    assert len(chosen[0].unique(dim=0)) == 50


def test_results_follow_the_seed_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (probe(small_encoder_without_seed(), make_images(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again and first.results["all"].metrics != other.results["all"].metrics


def small_encoder_without_seed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return small_encoder()


def test_parts_are_measured_apart():
    parts = {"all": slice(0, 16), "first": slice(0, 8)}
    found = probe(Grid(), make_images(), parts=parts).results
    assert list(found) == ["all", "first"]
    assert found["all"].metrics != found["first"].metrics


def test_state_and_modes_of_the_encoder_are_left_as_they_were():
    encoder = small_encoder().train()
    encoder[1].eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    probe(encoder, make_images())
    assert encoder.training and encoder[3].training and not encoder[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


class CountsItsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.mean(dim=(2, 3))


class AlwaysNan(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * float("nan")


def test_encoders_that_change_or_give_nan_are_refused():
    with pytest.raises(RuntimeError, match="encoding changed 'calls'"):
        probe(CountsItsCalls(), make_images())
    with pytest.raises(RuntimeError, match="not finite"):
        probe(AlwaysNan(), make_images())


def test_a_collapsed_encoder_has_no_numbers_but_a_note():
    found = probe(Constant(), make_images())
    assert found.results == {}
    assert found.notes == ("all images have the same features, the encoder has collapsed",)


@pytest.mark.usefixtures("turns_and_flips")
def test_an_invariant_encoder_has_no_gamma_and_a_note():
    found = probe(MeanColour(), make_images())
    assert list(found.results["all"].metrics) == METRICS[1:]
    assert found.results["all"].metrics["wahba_error"] < 1e-5
    assert found.notes == ("gamma_f is left out, because no augmentation moves any features",)


def test_with_few_images_only_gamma_is_measured():
    found = probe(Grid(), make_images(), max_images=63)
    assert list(found.results["all"].metrics) == ["gamma_f"]
    assert found.notes == (
        "wahba_error, composition_error and least_squares_error are left out, because 63 images are too few for 16 "
        "features (64 needed)",
    )
    assert list(probe(Grid(), make_images(), max_images=64).results["all"].metrics) == METRICS


@pytest.mark.usefixtures("turns_and_flips")
def test_pairs_that_do_not_move_are_noted():
    found = probe(Grid(), make_images(), num_augmentations=30)  # some of them draw no flip and no turn
    assert np.isfinite(found.results["all"].metrics["gamma_f"])
    assert any("gamma_f leaves out" in note and "of the pairs, which do not move" in note for note in found.notes)


def test_collections_that_cannot_be_asked_get_a_note():
    wide = make_images()
    wide.image_size = (16, 20)
    assert probe(Grid(), wide) == Found({}, ("images are 16 x 20 pixels, and crops are square: use square images",))
    lonely = make_images(num_objects=1, num_views=1)
    assert probe(Grid(), lonely) == Found(
        {}, ("there is only one image, and features of two can be compared: use more images",)
    )


def test_mild_augmentations_keep_half_of_the_area_and_all_colours():
    pipeline = augmentation_pipeline("mild", SimpleNamespace(image_size=(64, 64)))
    drawn = pipeline.draw(500, source_sizes=(64, 64), generator=torch.Generator().manual_seed(0))
    area = drawn.crop.height * drawn.crop.width / 64**2
    assert area.min() > 0.48 and area.max() <= 1
    assert drawn.jitter.applied.all() and drawn.grayscale is None and drawn.blur is None
    assert 0.4 < drawn.horizontal_flip.applied.float().mean() < 0.6


def test_presets_may_be_chosen():
    found = probe(Grid(), make_images(), augmentations="crop_flip").results["all"].metrics
    assert found != probe(Grid(), make_images()).results["all"].metrics
    with pytest.raises(ValueError, match="there are no views named 'strong'"):
        probe(Grid(), make_images(), augmentations="strong")


def test_without_compositions_there_is_no_error_of_them():
    metrics = probe(Grid(), make_images(), num_compositions=0).results["all"].metrics
    assert list(metrics) == [name for name in METRICS if name != "composition_error"]


def test_numbers_reach_the_records_the_table_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, test = make_images(num_objects=6), make_images(seed=1)
    results = probed(
        Grid(), {"all": slice(0, 16), "wide": slice(0, 12)}, train, test, random_encoder=Constant(),
        protocol=ProbeProtocol(classification_epochs=1), mean_rgb=MEAN_RGB, std_rgb=STD_RGB,
    )  # fmt: skip
    records = [record for record in results.records if record.task == TASK]
    assert [(record.part, record.metric) for record in records] == [
        (part, metric) for part in ("all", "wide") for metric in METRICS
    ]
    assert all(record.n == 80 and record.num_objects == 20 and record.random_encoder is None for record in records)
    (constant,) = [note for note in results.notes if "all 24 training views have the same 16 features" in note]
    collapsed = "random encoder, part all is constant"
    assert constant.startswith(collapsed) and "classification" in constant and TASK in constant

    path = publish_results(tmp_path, results, test, title="t", command="c")
    printed = capsys.readouterr().out
    assert TASK in printed and "lower is better: gamma_f, wahba_error, composition_error" in printed
    assert collapsed in " ".join(printed.split()), "notes are wrapped at words"
    assert max(len(line.rstrip()) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    stored = json.loads((tmp_path / "results.json").read_text())["records"]
    assert sum(record["task"] == TASK for record in stored) == 8
    page = path.read_text()
    assert "wahba_error" in page and "lower is better" in page and collapsed in page
    assert "num_compositions" in page, "the protocol is shown"
