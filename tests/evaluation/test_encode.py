import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.data.bad_records import BadRecords
from ssl_equi.data.images import normalise_images
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import DataError
from ssl_equi.evaluation.features import encode_images, encode_split

MEAN_RGB, STD_RGB = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def small_encoder() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    encoder[1].running_mean.uniform_(-1, 1)
    return encoder


@pytest.mark.parametrize("batch_size", [1, 13, 24, 1000])
def test_features_equal_a_forward_pass_of_each_single_view(fake_dataset, batch_size):
    encoder = small_encoder()
    cache = encode_split(encoder, fake_dataset, MEAN_RGB, STD_RGB, batch_size=batch_size)
    assert cache.features.shape == (12, 6, 20)
    assert cache.features.dtype == torch.float32
    encoder.eval()
    for object_index in range(12):
        for view_index in range(6):
            pixels = fake_dataset.pixels[object_index, view_index].astype(np.float64) / 255
            normalised = torch.from_numpy((pixels - MEAN_RGB) / STD_RGB).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                expected = encoder(normalised)[0]
            torch.testing.assert_close(cache.features[object_index, view_index], expected, atol=1e-5, rtol=1e-5)


def test_what_is_known_of_the_views_comes_along(fake_dataset):
    cache = encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB)
    assert cache.labels.tolist() == fake_dataset.labels.tolist()
    np.testing.assert_array_equal(cache.latents, fake_dataset.latents)
    np.testing.assert_array_equal(cache.quats_xyzw, fake_dataset.quats_xyzw)


@pytest.mark.parametrize("batch_size", [13, 1000])
def test_objects_that_cannot_be_read_are_left_out_if_asked(fake_dataset, batch_size, monkeypatch):
    whole = encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB)
    read_views = fake_dataset.read_views

    def read_all_but_two(object_indices, view_indices, out, content_sizes_out):
        if np.isin(object_indices, (4, 5)).any():
            raise DataError("it is damaged")
        read_views(object_indices, view_indices, out)

    monkeypatch.setattr(fake_dataset, "read_views", read_all_but_two)
    for unskipping in (None, BadRecords("raise", 2, 0), BadRecords("skip", 1, 0)):
        with pytest.raises(DataError, match="it is damaged"):
            encode_split(
                small_encoder(), fake_dataset, MEAN_RGB, STD_RGB, batch_size=batch_size, bad_records=unskipping
            )
    skipping = BadRecords("skip", 2, 0)
    cache = encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB, batch_size=batch_size, bad_records=skipping)
    kept = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    for name in ("features", "labels", "latents", "quats_xyzw"):
        torch.testing.assert_close(getattr(cache, name), getattr(whole, name)[kept], atol=1e-6, rtol=0)
    assert skipping.skipped == 2


def test_state_and_each_submodules_mode_are_left_as_they_were(fake_dataset):
    encoder = small_encoder().train()
    encoder[1].eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encode_split(encoder, fake_dataset, MEAN_RGB, STD_RGB)
    assert encoder.training
    assert encoder[3].training
    assert not encoder[1].training
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


class CountsItsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.flatten(1)


def test_an_encoder_that_changes_in_evaluation_mode_is_refused_by_name(fake_dataset):
    with pytest.raises(RuntimeError, match=r"encoding changed '1\.calls' of the encoder \(1 of 1 tensors\)"):
        encode_split(nn.Sequential(nn.Identity(), CountsItsCalls()), fake_dataset, MEAN_RGB, STD_RGB)


class AlwaysNan(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2] * float("nan")


def test_features_that_are_not_finite_are_refused(fake_dataset):
    with pytest.raises(RuntimeError, match="not finite"):
        encode_split(AlwaysNan(), fake_dataset, MEAN_RGB, STD_RGB)


def test_an_error_of_the_reader_arrives(fake_dataset):
    def broken_read(*_: object) -> None:
        raise OSError("shard is gone")

    fake_dataset.read_views = broken_read
    with pytest.raises(OSError, match="shard is gone"):
        encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB)


def test_cached_features_can_be_trained_on(fake_dataset):
    cache = encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB)
    head = nn.Linear(20, 1)
    head(cache.features).sum().backward()
    assert head.weight.grad is not None


def test_a_part_is_its_columns(fake_dataset):
    cache = encode_split(small_encoder(), fake_dataset, MEAN_RGB, STD_RGB)
    part = cache.part(slice(5, 12))
    assert torch.equal(part.features, cache.features[:, :, 5:12])
    assert part.num_objects == 12
    assert part.num_views == 6


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (64, [64]), (65, [33, 32]), (510, [64] * 6 + [63] * 2)])
def test_a_cpu_gets_evenly_small_batches(count: int, expected: list[int]) -> None:
    sizes = []

    def note_size(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.mean(dim=(2, 3))

    pixels = torch.randint(0, 256, (count, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = encode_images(note_size, pixels, MEAN_RGB, STD_RGB)
    assert sizes == expected
    torch.testing.assert_close(found, note_size(normalise_images(pixels, MEAN_RGB, STD_RGB)))


@pytest.mark.parametrize("name", ["strided_cnn_tiny", "resnet18"])
def test_small_batches_do_not_change_a_bit(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, 32).eval()
    pixels = torch.randint(0, 256, (130, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        whole = encoder(normalise_images(pixels, MEAN_RGB, STD_RGB))
        assert torch.equal(encode_images(encoder, pixels, MEAN_RGB, STD_RGB), whole)
