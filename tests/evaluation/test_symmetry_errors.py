"""Errors under symmetries: known answers, encoders that are exact, one that is not, and what can't be measured."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders.octic.vit import OcticVisionTransformer
from ssl_equi.encoders.square.resnet import GroupResNet
from ssl_equi.encoders.square.symmetries import act_on_image
from ssl_equi.encoders.symmetric import Symmetric
from ssl_equi.encoders.wrappers import GroupAveraged
from ssl_equi.evaluation.symmetry.errors import SymmetryErrors, measure_symmetry
from ssl_equi.evaluation.symmetry.image_symmetries import ImageSymmetries, SymmetryName, image_symmetries
from ssl_equi.evaluation.symmetry.layers import Spread
from ssl_equi.runtime.frozen import frozen

SIDE = 16
EXACT: tuple[SymmetryName, ...] = ("c4", "d4", "circular_shifts")
SETS: tuple[SymmetryName, ...] = (*EXACT, "rotations")


class Pixels(nn.Module):
    """Features that are the image itself; with an action, they say how they turn."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class ActingPixels(Pixels, Symmetric):
    def act_on_features(self, element: int, features: Tensor) -> Tensor:
        return act_on_image(element, features.unflatten(1, (3, SIDE, SIDE))).flatten(1)


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def random_images(count: int = 6, side: int = SIDE, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3)).to(dtype)


def measure(encoder: nn.Module, symmetries: SymmetryName | ImageSymmetries, **arguments) -> SymmetryErrors:
    if isinstance(symmetries, str):
        symmetries = image_symmetries(symmetries, SIDE)
    images = arguments.pop("images", random_images())
    with frozen(encoder):
        width = encoder(images[:1]).shape[1]
    return measure_symmetry(encoder, images, symmetries, {"all": slice(0, width)}, **arguments)


def group_resnet(group: str = "d4", features: str = "both") -> GroupResNet:
    torch.manual_seed(0)
    network = GroupResNet(group, (1, 1), (8, 16), "small_images", img_size=SIDE, features=features)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    return network


def octic_vit(**arguments) -> OcticVisionTransformer:
    torch.manual_seed(0)
    return OcticVisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=16, depth=2, num_heads=2, **({"invariants": "none"} | arguments)
    )


def plain_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def test_the_scale_is_the_mean_squared_distance_of_different_images() -> None:
    values = torch.randn(7, 5, dtype=torch.float64) + 100
    squared = [((values[i] - values[j]) ** 2).sum() for i in range(7) for j in range(7) if i != j]
    spread, of_equal_rows = Spread(), Spread()
    spread.add(values)
    of_equal_rows.add(torch.full((7, 5), 0.1))
    assert spread.value == pytest.approx(float(torch.stack(squared).mean()), rel=1e-10)
    assert of_equal_rows.value == 0


def test_pixels_change_as_numpy_says() -> None:
    images = random_images().numpy()
    changes = [np.square(np.rot90(image, k, axes=(1, 2)) - image).sum() for image in images for k in (1, 2, 3)]
    pairs = [np.square(a - b).sum() for i, a in enumerate(images) for j, b in enumerate(images) if i != j]
    expected = np.sqrt(np.mean(changes) / np.mean(pairs))
    for batch_size in (6, 4):
        errors = measure(Pixels(), "c4", batch_size=batch_size)
        assert errors.parts["all"].invariance_error == pytest.approx(expected, rel=1e-12)
    shifts = image_symmetries("circular_shifts", SIDE, all_shifts=True)
    assert len(shifts.elements) == SIDE * SIDE - 1
    changes = [
        np.square(np.roll(image, (down, right), axis=(1, 2)) - image).sum()
        for image in images for down in range(SIDE) for right in range(SIDE) if down or right
    ]  # fmt: skip
    expected = np.sqrt(np.mean(changes) / np.mean(pairs))
    assert measure(Pixels(), shifts).parts["all"].invariance_error == pytest.approx(expected, rel=1e-12)


def test_pixels_act_as_they_say() -> None:
    errors = measure(ActingPixels(), "d4")
    assert errors.parts["all"].equivariance_error == 0
    assert errors.parts["all"].invariance_error > 0.5
    assert errors.similarities.shape == (6, 7)
    assert (errors.similarities_of_action - 1).abs().max() < 1e-12
    assert errors.similarities.abs().max() < 0.9


@pytest.mark.parametrize("name", EXACT)
def test_the_mean_colour_is_invariant(name: SymmetryName) -> None:
    errors = measure(MeanColour(), name, labels=torch.arange(6) // 2)
    assert errors.parts["all"].invariance_error < 1e-14
    assert errors.parts["all"].consistency == 1
    assert (errors.similarities - 1).abs().max() < 1e-12


def test_rotations_turn_counter_clockwise_within_the_circle_and_say_that_they_interpolate() -> None:
    rotations = image_symmetries("rotations", SIDE, angles_deg=(90.0, 45.0))
    images = rotations.prepare(random_images())
    assert [element.value for element in rotations.elements] == [45.0, 90.0]
    quarter = rotations.act(rotations.elements[1], images)
    assert (quarter - torch.rot90(images, 1, dims=(2, 3))).abs().max() < 1e-10
    assert images[..., 0, 0].abs().max() == 0
    assert images[..., SIDE // 2, 0].abs().min() > 0
    # Smooth images are hardly blurred, so their mean colour within the circle stays.
    smooth = nn.functional.interpolate(random_images(side=4), size=(SIDE, SIDE), mode="bicubic")
    errors = measure(MeanColour(), rotations, images=smooth)
    assert 0 < errors.parts["all"].invariance_error < 0.1
    assert not rotations.exact
    assert any("interpolation alone" in note for note in errors.notes)


@pytest.mark.parametrize("features", ["both", "invariant"])
def test_a_group_resnet_is_exact_in_its_features_and_layers(features: str) -> None:
    errors = measure(group_resnet(features=features).double(), "d4")
    assert errors.parts["all"].equivariance_error < 1e-12
    assert (errors.parts["all"].invariance_error < 1e-12) == (features == "invariant")
    maps = [layer for layer in errors.layers if layer.spatial_error is not None]
    assert {"activation", "stages.0", "stages.1"} <= {layer.name for layer in maps}
    for layer in maps:
        assert layer.equivariance_error < 1e-12, layer
        assert layer.spatial_error > 0.1, layer
    assert not errors.left_out
    single = measure(group_resnet(features=features), "d4", images=random_images(dtype=torch.float32))
    assert single.parts["all"].equivariance_error < 1e-5


def test_parts_are_measured_apart() -> None:
    network = group_resnet().double()
    errors = measure_symmetry(network, random_images(), image_symmetries("c4", SIDE), network.parts, with_layers=False)
    assert errors.parts["inv"].invariance_error < 1e-12
    assert errors.parts["equi"].invariance_error > 0.01
    assert errors.parts["equi"].equivariance_error < 1e-12
    assert errors.layers == ()


def test_an_octic_vit_is_exact_in_its_features_and_blocks() -> None:
    errors = measure(octic_vit().double(), "d4")
    assert errors.parts["all"].equivariance_error < 1e-12
    assert [layer.name for layer in errors.layers] == ["blocks.0", "blocks.1"]
    assert all(layer.equivariance_error < 1e-12 and layer.spatial_error > 0.1 for layer in errors.layers)
    invariant = measure(octic_vit(kind="invariant", invariants="power_spectrum").double(), "d4")
    assert invariant.parts["all"].invariance_error < 1e-12
    assert invariant.layers[0].equivariance_error < 1e-12
    assert invariant.layers[1].equivariance_error is None, "its standard block has no action of its own"
    assert invariant.layers[1].spatial_error < 1e-12


@pytest.mark.parametrize("name", SETS)
def test_a_plain_network_is_not_exact(name: SymmetryName) -> None:
    errors = measure(plain_cnn().double(), name)
    assert errors.parts["all"].invariance_error > 0.01
    assert errors.parts["all"].equivariance_error is None
    assert any(f"the encoder states no action of {name}" in note for note in errors.notes)
    assert all(layer.spatial_error > 0.01 for layer in errors.layers[:3])


def test_an_activation_in_place_does_not_change_what_the_layer_before_gave() -> None:
    encoder, images = plain_cnn().double(), random_images()
    errors = measure(encoder, "c4")
    with torch.no_grad():
        maps, turned = (encoder[0](x).mean(dim=(2, 3)) for x in (images, torch.rot90(images, 1, dims=(2, 3))))
    assert maps.min() < 0 and turned.min() < 0
    first, second = errors.layers[:2]
    assert first.invariance_error != pytest.approx(second.invariance_error, rel=1e-3)


def test_a_circular_convolution_moves_with_shifts_that_its_stride_divides() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 4, stride=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()
    errors = measure(encoder, image_symmetries("circular_shifts", SIDE, distances_px=(1, 4)))
    fine, coarse, *_ = errors.layers
    assert fine.compared_elements == 6
    assert coarse.compared_elements == 3
    assert fine.spatial_error < 1e-12
    assert coarse.spatial_error < 1e-12
    assert errors.parts["all"].invariance_error > 0.01, "shifts by one pixel are no whole steps"
    odd = measure(encoder, image_symmetries("circular_shifts", SIDE, distances_px=(1,)))
    assert odd.left_out["1"] == "measured after pooling only: no shift moves its 4 x 4 cells by whole cells"


class ManyOutputs(nn.Module):
    """Layers that are called twice, never, with two outputs, and on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
        self.pool = nn.AdaptiveMaxPool2d(1, return_indices=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.pool(self.twice(self.twice(images)))[0].flatten(1))


class ChannelsLast(nn.Module):
    """A norm of maps with their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images.permute(0, 2, 3, 1)).mean(dim=(1, 2))


def test_maps_with_their_channels_last_are_maps() -> None:
    errors = measure(ChannelsLast().double(), "d4")
    assert not errors.left_out
    (layer,) = errors.layers
    assert layer.spatial_error < 1e-12
    assert layer.invariance_error < 1e-12


def test_what_cannot_be_compared_is_named_with_its_reason() -> None:
    errors = measure(ManyOutputs().double(), "c4")
    assert errors.left_out == {
        "twice": "it is called 2 times",
        "never": "it is not called in the forward pass",
        "pool": "its output is a tuple, not one tensor",
    }
    assert [layer.name for layer in errors.layers] == ["last"]
    averaged = GroupAveraged(group_resnet(features="regular"), "d4").double()
    errors = measure(averaged, "d4")
    assert errors.parts["all"].invariance_error < 1e-12
    assert errors.left_out["encoder"] == "its output has shape (48, 16) for 6 images"


def test_an_action_of_quarter_turns_is_not_taken_for_one_with_mirrorings() -> None:
    network = group_resnet("c4").double()
    assert measure(network, "c4").parts["all"].equivariance_error < 1e-12
    errors = measure(network, "d4")
    assert errors.parts["all"].equivariance_error is None
    assert any("c4 has the elements 0..3" in note for note in errors.notes)
    assert all(layer.equivariance_error is None for layer in errors.layers)
    assert measure(network, "circular_shifts").parts["all"].equivariance_error is None


def test_predictions_are_those_of_the_nearest_class_mean() -> None:
    images, labels = random_images(), torch.tensor([0, 0, 0, 1, 1, -1])
    known = images.flatten(1)
    means = torch.stack([known[:3].mean(0), known[3:5].mean(0)])
    predictions = [
        [int(((row - means) ** 2).sum(1).argmin()) for row in act_on_image(g, images).flatten(1)] for g in range(4)
    ]
    expected = np.mean([np.equal(predictions[g], predictions[0]) for g in (1, 2, 3)])
    errors = measure(Pixels(), "c4", images=images, labels=labels).parts["all"]
    assert errors.consistency == expected
    same = [a == b for i, a in enumerate(predictions[0]) for j, b in enumerate(predictions[0]) if i != j]
    assert errors.chance_consistency == pytest.approx(np.mean(same))
    without = measure(Pixels(), "c4", labels=torch.zeros(6, dtype=torch.int64))
    assert without.parts["all"].consistency is None
    assert any("there are not two classes" in note for note in without.notes)


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = group_resnet().double().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    measure(encoder, "c4")
    assert encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_malformed_input_is_one_sentence_with_a_cure() -> None:
    with pytest.raises(ValueError, match="no symmetries 'd8': choose from c4, d4"):
        image_symmetries("d8", SIDE)
    with pytest.raises(ValueError, match=r"shifts are \[16\]: give distances from 1 to 15"):
        image_symmetries("circular_shifts", SIDE, distances_px=(16,))
    with pytest.raises(ValueError, match=r"angles are \[360.0\]"):
        image_symmetries("rotations", SIDE, angles_deg=(360.0,))
    c4 = image_symmetries("c4", SIDE)
    with pytest.raises(ValueError, match="asked of square ones"):
        measure(Pixels(), c4, images=random_images()[..., :12])
    with pytest.raises(ValueError, match=r"have 8 x 8 pixels and the symmetries are those of images of 16"):
        measure(Pixels(), c4, images=random_images(side=8))
    with pytest.raises(ValueError, match="1 image was given"):
        measure(Pixels(), c4, images=random_images(1))
    with pytest.raises(ValueError, match=r"labels are torch.int64 of shape \(2,\)"):
        measure(Pixels(), c4, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"can't take images of 18 x 18 pixels .*give images of the size"):
        measure_symmetry(
            group_resnet().double(), random_images(side=18), image_symmetries("c4", 18), {"all": slice(0, 18)}
        )
    with pytest.raises(ValueError, match="part 'all' of the features is the same for all 6 images"):
        measure(Pixels(), c4, images=torch.ones(6, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="part 'none' has no columns"):
        measure_symmetry(Pixels(), random_images(), c4, {"none": slice(9, 9)})
