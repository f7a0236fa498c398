"""Encoding once: what is found again, what is not, and what damaged entries do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_equi.data.derived import DerivedViews, TurnedViews
from ssl_equi.errors import FeatureError
from ssl_equi.evaluation.features import FeatureCache, FeatureStore, FrozenEncoder, encode_split
from ssl_equi.runtime.frozen import state_sha256
from tests.fakes import ViewsInMemory

MEAN_RGB, STD_RGB = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def pooled_encoder(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder[0].weight.data.mul_(scale)
    return encoder


def encode(store: FeatureStore, encoder: nn.Module, dataset: ViewsInMemory, **options) -> FeatureCache:
    kept = {name: options.pop(name) for name in ("change", "on_progress", "bad_records") if name in options}
    described = {
        "mean_rgb": MEAN_RGB, "std_rgb": STD_RGB, "name": "pooled", "architecture": "pooled",
        "state_sha256": state_sha256(encoder), "batch_size": 18,
    } | options  # fmt: skip
    return store.encode(FrozenEncoder(encoder, **described), dataset, **kept)


def test_features_are_those_of_encoding_and_a_second_process_needs_no_pass(fake_dataset, tmp_path: Path) -> None:
    encoder = pooled_encoder()
    expected = encode_split(encoder, fake_dataset, MEAN_RGB, STD_RGB)
    first, progress = FeatureStore(tmp_path), []
    cache = encode(first, encoder, fake_dataset, on_progress=lambda done, total: progress.append((done, total)))
    assert first.encoder_passes == 72 and progress == [(18, 72), (36, 72), (54, 72), (72, 72)]
    second = FeatureStore(tmp_path)
    found = encode(second, encoder, fake_dataset)
    assert second.encoder_passes == 0
    for name in ("features", "labels", "latents", "quats_xyzw"):
        assert torch.equal(getattr(cache, name), getattr(expected, name))
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert not list(tmp_path.glob(".writing*"))
    # An ordinary tensor: heads train on it, and a change stays in memory.
    nn.Linear(20, 1)(found.features).sum().backward()
    found.features[0] = 7.0
    assert torch.equal(encode(second, encoder, fake_dataset).features, expected.features)


def test_whatever_features_depend_on_is_part_of_the_key(fake_dataset, fake_test_dataset, tmp_path: Path) -> None:
    store, encoder = FeatureStore(tmp_path), pooled_encoder()
    encode(store, encoder, fake_dataset)
    square = ViewsInMemory(
        np.ascontiguousarray(fake_dataset.pixels[:, :, :, :8]),
        **{name: getattr(fake_dataset, name) for name in ("split", "class_names", "labels", "latents", "quats_xyzw")},
    )
    others = [
        (pooled_encoder(scale=2.0), fake_dataset, {}),
        (encoder, fake_test_dataset, {}),
        (encoder, DerivedViews(fake_dataset, split="val"), {}),
        (encoder, DerivedViews(fake_dataset, content_key="written anew"), {}),
        (encoder, fake_dataset, {"architecture": "another with the same tensors"}),
        (encoder, fake_dataset, {"mean_rgb": (0.5, 0.5, 0.5)}),
        (encoder, square, {}),
        (encoder, TurnedViews(square, "quarter"), {}),
        (encoder, TurnedViews(square, "quarter", seed=1), {}),
    ]  # fmt: skip
    for index, (module, dataset, options) in enumerate(others):
        encode(store, module, dataset, **options)
        assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == index + 2


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "no entry.json", "other key", "no features"])
def test_damaged_entries_are_encoded_anew(fake_dataset, tmp_path: Path, damage: str) -> None:
    encoder = pooled_encoder()
    expected = encode(FeatureStore(tmp_path), encoder, fake_dataset).features.clone()
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    features, description = entry / "features.npy", entry / "entry.json"
    content = bytearray(features.read_bytes())
    if damage == "truncated":
        features.write_bytes(content[:-100])
    elif damage == "flipped bit":
        content[-1] ^= 1
        features.write_bytes(content)
    elif damage == "no entry.json":
        description.unlink()
    elif damage == "no features":
        features.unlink()
    else:
        told = json.loads(description.read_text())
        told["key"]["split"] = "another"
        description.write_text(json.dumps(told))
    store = FeatureStore(tmp_path)
    assert torch.equal(encode(store, encoder, fake_dataset).features, expected)
    assert store.encoder_passes == 72


def test_a_crash_leaves_no_entry(fake_dataset, tmp_path: Path) -> None:
    encoder, calls = pooled_encoder(), []
    whole = fake_dataset.read_views

    def breaks_later(objects: np.ndarray, views: np.ndarray, out: np.ndarray, sizes_out: None) -> None:
        calls.append(objects)
        if len(calls) == 3:
            raise ValueError("the shard is gone")
        whole(objects, views, out)

    fake_dataset.read_views = breaks_later
    with pytest.raises(ValueError, match="the shard is gone"):
        encode(FeatureStore(tmp_path), encoder, fake_dataset)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    fake_dataset.read_views = whole
    store = FeatureStore(tmp_path)
    encode(store, encoder, fake_dataset)
    assert store.encoder_passes == 72


class NanOfOneView(nn.Module):
    """Not finite for the view whose first pixel is marked."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1)[:, :2].clone()
        rows[images[:, 2, 7, 9] > 2] = float("nan")
        return rows


def test_the_first_view_without_finite_features_is_named(fake_dataset, tmp_path: Path) -> None:
    fake_dataset.pixels[:, :, 7, 9, 2] = 0
    fake_dataset.pixels[7, 4, 7, 9, 2] = 255
    message = "features of pooled are not finite, first those of view 4 of object 7 of the test split"
    with pytest.raises(FeatureError, match=message):
        encode(FeatureStore(tmp_path), NanOfOneView(), fake_dataset, batch_size=100)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_state_hash_tells_of_names_values_types_and_hidden_buffers() -> None:
    encoder = nn.Sequential(nn.BatchNorm1d(2))
    before = state_sha256(encoder)
    assert before == state_sha256(nn.Sequential(nn.BatchNorm1d(2)))
    assert state_sha256(nn.Sequential(nn.Identity(), nn.BatchNorm1d(2))) != before
    assert state_sha256(nn.Sequential(nn.BatchNorm1d(2)).double()) != before
    encoder[0].running_mean[1] += 1e-7
    assert state_sha256(encoder) != before
    hidden = nn.Module()
    hidden.register_buffer("calls", torch.zeros(1), persistent=False)
    before = state_sha256(hidden)
    hidden.calls += 1
    assert state_sha256(hidden) != before
