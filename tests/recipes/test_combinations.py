"""Bases and terms that can't be combined are refused before anything is trained, in one sentence with the cure."""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes import SmallConfig, load_recipe, refused

# recipe, configuration, changes of it, what is said
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("care", "two_pass", {"base": "moco"}, "the base objective MoCo does not embed both views"),
    ("care", "embedded", {"objective.reuse_views": True},
     "rendered views share no augmentations: choose --views.source"),
    ("care", "embedded", {"batch_size": 6},
     "--batch-size is 6 and chunks of 4 images share their augmentations: choose a multiple of 4"),
    ("care", "embedded", {"keep_incomplete_batch": True},
     "--keep-incomplete-batch is given and chunks of images share their augmentations, of which an incomplete "
     "batch may hold a part: leave it out"),
    ("equicaps", "embedded", {"actions": ("rotation_color",)},
     "--actions is rotation_color and poses are multiplied with one matrix: choose a rotation"),
    ("equicaps", "embedded", {"actions": ("pose_base",)}, "action 'pose_base' is none of this data's"),
    ("equicaps", "embedded", {"actions": ("rotation_6d",)},
     "--actions is rotation_6d and poses are multiplied with one matrix"),
    ("equicaps", "embedded", {"encoder": "strided_cnn_tiny"}, "the backbone has a layer behind its feature map"),
    ("equicaps", "embedded", {"num_capsules": 0}, "--num-capsules is 0"),
    ("capsie", "embedded", {"pose_side": 0}, "--pose-side is 0"),
    ("essl", "embedded", {"small_view.group": "grayscale", "objective.relative": True}, "grayscale is not a group"),
    ("essl", "embedded", {"small_view.elements": 9}, "--small-view.elements is 9: four_fold_rotation has 4"),
    ("essl", "embedded", {"objective.weight": -1.0}, "the weight of the prediction is -1.0"),
    ("moco", "embedded", {"batch_size": 12}, "queue_size is 16 but each step adds 12 keys: choose a multiple of 12"),
    ("moco", "embedded", {"keep_incomplete_batch": True},
     "--keep-incomplete-batch is given and the queue takes equally many keys at every step: leave it out"),
    ("seq_jepa", "embedded", {"observed_views": 4},
     "sequences of 5 views are asked for and in 3diebench-p objects have 4: choose --observed-views 3 or less"),
    ("seq_jepa", "embedded", {"observed_views": 0}, "--observed-views is 0: give a number from 1 to"),
    ("seq_jepa", "embedded", {"objective.heads": 7},
     "a token has 264 numbers (features and embedded action), which 7 heads"),
    ("seq_jepa", "cifar100", {"dataset": "3diebench-p", "actions": ("rotation",)}, "choose --actions augmentation"),
    ("sie", "embedded", {"actions": ("augmentation",)}, "--actions is augmentation and --views.source is rendered"),
    ("simclr", "embedded", {"objective.temperature": 0.0}, "temperature is 0.0"),
    ("supervised", "embedded", {"objective.class_weight": 0.0, "objective.action_weight": 0.0}, "weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "configuration", "changes", "sentence"), CASES, ids=[f"{case[0]}: {case[3]}" for case in CASES]
)
def test_what_does_not_go_together_is_said_in_one_sentence(
    name: str,
    configuration: str,
    changes: dict[str, Any],
    sentence: str,
    small_config: SmallConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe(name)
    config = small_config(recipe, configuration, out=tmp_path / "run", **changes)
    assert sentence in refused(lambda: recipe.main(config), capsys)
