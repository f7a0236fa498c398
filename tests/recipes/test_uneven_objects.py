"""Runs on objects with different numbers of views: from shards to records and report."""

import json
import math
from pathlib import Path

import pytest

from recipes import seq_jepa, sie, vicreg
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import UserError
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS
from tests.fakes import NEEDS_TRANSLATIONS, SmallConfig, losses, train_only


@pytest.mark.usefixtures("quick_probes")
def test_pairs_of_stored_views_train_and_every_view_is_judged(
    small_config: SmallConfig, uneven_data: Path, tmp_path: Path
) -> None:
    config = small_config(
        vicreg, out=tmp_path / "run", data_dir=uneven_data, dataset="posed", steps=3, **{"views.source": "rendered"}
    )
    vicreg.main(config)
    assert len(losses(tmp_path / "run")) == 3
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    split = ShardDataset(uneven_data, "test")
    found = {record["task"]: record for record in results["records"]}
    assert set(found) == {*CORE_TASKS, AUGMENTATION_EQUIVARIANCE} - {*NEEDS_TRANSLATIONS}
    assert all(math.isfinite(record["value"]) for record in results["records"])
    assert found["classification"]["n"] == split.num_images == 50 and split.view_counts.max() == 6
    assert found["classification"]["num_objects"] == 12
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.usefixtures("without_ending")
@pytest.mark.parametrize(
    "source", [{"reading": "streamed"}, {"cache_decoded": True}, {"loader_workers": 1}, {}], ids=str
)
def test_predictors_are_told_of_poses_however_views_are_read(
    source: dict, small_config: SmallConfig, uneven_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train_only(sie, small_config(sie, out=tmp_path / "run", data_dir=uneven_data, dataset="posed", steps=3, **source))
    assert len(losses(tmp_path / "run")) == 3 and all(map(math.isfinite, losses(tmp_path / "run")))


def test_a_sequence_that_an_object_is_too_short_for_is_refused_before_anything_is_trained(
    small_config: SmallConfig, uneven_data: Path, tmp_path: Path
) -> None:
    key = ShardDataset(uneven_data, "train").keys[1].decode()
    config = small_config(seq_jepa, out=tmp_path / "run", data_dir=uneven_data, dataset="posed", observed_views=3)
    message = (
        f"sequences of 4 views are asked for and in posed object 1 '{key}' has 3: choose --observed-views 2 or less"
    )
    with pytest.raises(UserError, match=message):
        seq_jepa.main(config)
