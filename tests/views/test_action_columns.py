"""Columns of actions by the transform that they tell of."""

import pytest

from ssl_equi.views.action_columns import column_transforms, columns_about
from ssl_equi.views.actions import ENCODERS, STANDARD, action_names

FIELDS = ("crop", "horizontal_flip", "jitter", "grayscale", "blur", "solarize")


@pytest.mark.parametrize("encoding", ENCODERS)
def test_every_column_has_a_transform_and_the_names_agree(encoding: str) -> None:
    names, owners = action_names(encoding, FIELDS), column_transforms(encoding, FIELDS)
    assert len(names) == len(owners)
    words = {"crop": "crop", "blur": "blur", "horizontal_flip": "horizontal_flip"}
    for name, owner in zip(names, owners, strict=True):
        assert owner in STANDARD
        if owner in words:
            assert name.startswith(words[owner])
    assert columns_about(owners, encoding, FIELDS) == tuple(range(len(names)))


def test_the_columns_of_some_transforms() -> None:
    assert columns_about(("crop",), "seq_jepa_legacy", FIELDS) == (0, 1, 2, 3)
    assert columns_about(("blur", "jitter"), "seq_jepa_raw", FIELDS) == (4, 5, 6, 7, 8)
    names = action_names("standard", FIELDS)
    chosen = [names[column] for column in columns_about(("jitter", "solarize"), "standard", FIELDS)]
    assert chosen == ["log_brightness", "log_contrast", "log_saturation", "hue", "solarize"]


def test_a_transform_without_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no column about 'solarize': choose from crop, jitter, blur"):
        columns_about(("crop", "solarize"), "seq_jepa_raw", FIELDS)
