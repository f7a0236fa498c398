"""The script that measures symmetries: an exported encoder, a timm model with random weights, and wrong options."""

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ssl_equi import create_encoder
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.errors import CheckpointError, UserError
from ssl_equi.evaluation.report.compared_runs import read_compared_runs
from ssl_equi.evaluation.report.symmetry import symmetry_section
from ssl_equi.evaluation.results import read_evaluation, read_records, write_evaluation
from ssl_equi.evaluation.symmetry.errors import measure_symmetry
from ssl_equi.evaluation.symmetry.image_symmetries import image_symmetries
from ssl_equi.evaluation.symmetry.results import add_symmetry
from ssl_equi.evaluation.tables import describe_columns
from ssl_equi.export.encoder import EncoderCard, save_encoder
from tests.evaluation.report_pages import make_older_run

SCRIPT = Path(__file__).parent.parent.parent / "evaluation" / "equivariance.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("evaluation_equivariance", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def export(folder: Path, architecture: str, parts: dict[str, tuple[int, int]]) -> str:
    torch.manual_seed(0)
    card = EncoderCard(
        architecture=architecture, image_size=32, mean_rgb=(0.5, 0.5, 0.5), std_rgb=(0.1, 0.1, 0.1), parts=parts,
        objective="sie", trained_on="test", license="apache-2.0", tag="test", model_args={"img_size": 32},
    )  # fmt: skip
    save_encoder(create_encoder(architecture, 32, img_size=32), folder / "encoder", card)
    return str(folder / "encoder")


def test_an_exported_encoder_is_measured_beside_a_random_one(
    script: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = export(tmp_path / "run", "d4_resnet10_small_images", {"all": (0, 256), "equi": (0, 256)})
    script.main(
        script.Config(folder, symmetries=("d4", "circular_shifts"), data_dir=tiny_data, num_images=6, shifts=(8,))
    )
    records = read_records(tmp_path / "run" / "results.json")
    by_name = {(record.task, record.part, record.metric): record for record in records}
    exact = by_name["symmetry_d4", "all", "equivariance_error"]
    assert exact.value < 1e-4
    assert exact.random_encoder < 1e-4
    assert (exact.baseline, exact.baseline_name, exact.n, exact.num_objects) == (1.0, "other images", 6 * 7, 6)
    assert by_name["symmetry_d4", "equi", "invariance_error"].value > 0.01
    assert 0 <= by_name["symmetry_d4", "all", "consistency"].value <= 1
    assert by_name["symmetry_d4_layers", "stages.1", "equivariance_error"].value < 1e-4
    assert ("symmetry_circular_shifts", "all", "equivariance_error") not in by_name
    assert "lower is better: invariance_error, equivariance_error, spatial_error" in "; ".join(
        describe_columns([record for record in records if record.metric != "consistency"])
    )
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("added to")) <= 80
    assert "stages.3" in printed
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ('id="symmetry"', "layers-0-d4-", "layers-0-circular_shifts", "orbit-0-d4-all-",
                 "orbit-0-circular_shifts-5-"):  # fmt: skip
        assert text in page
    assert "://" not in page
    results = page[page.index('id="results"') : page.index('id="symmetry"')]
    assert "<td>equi" in results and "<td>stages.1" not in results, "layers are drawn, and in no table of results"


def test_a_timm_model_is_measured_on_random_images(script: ModuleType, tmp_path: Path) -> None:
    config = script.Config(
        "random:strided_cnn_tiny", symmetries=("rotations",), dataset="random", image_size=32, num_images=3,
        angles=(30.0, 90.0), layers=False, out=tmp_path,
    )  # fmt: skip
    script.main(config)
    records = read_records(tmp_path / "results.json")
    assert {(record.task, record.metric) for record in records} == {("symmetry_rotations", "invariance_error")}
    assert (records[0].random_encoder, records[0].split) == (None, "random images")
    assert "interpolation alone" in (tmp_path / "report.html").read_text()


def test_what_a_run_left_stays_and_an_earlier_measurement_goes(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "write_report_or_warn", lambda folders, out: None)
    other = np.arange(3)
    write_evaluation(tmp_path, [], ["a note"], {"title": "a run"}, {"map_labels": other, "symmetry_rows/c4": other})
    config = script.Config(
        "random:strided_cnn_tiny", symmetries=("c4",), dataset="random", image_size=32, num_images=2, layers=False,
        out=tmp_path,
    )  # fmt: skip
    script.main(config)
    script.main(replace(config, num_images=3, symmetries=("d4",)))
    found = read_evaluation(tmp_path)
    assert found.run["title"] == "a run" and found.arrays["map_labels"].tolist() == [0, 1, 2]
    assert found.arrays["symmetry_similarity/c4"].shape == (2, 3)
    assert found.arrays["symmetry_similarity/d4"].shape == (3, 7)
    assert found.arrays["symmetry_images/c4"].shape == (2, 32, 32, 3) and len(found.arrays["symmetry_rows/d4"]) == 3
    other = make_older_run(tmp_path / "other", [])
    section = symmetry_section(read_compared_runs([f"first={tmp_path}", f"second={other}"]))
    ids = re.findall(r' id="([^"]+)"', section)
    assert len(ids) == len(set(ids)) and "first: c4, 3 elements" in section and "second" not in section


def test_measurements_that_end_at_the_same_time_keep_each_others_arrays(tmp_path: Path) -> None:
    images, parts = torch.rand(2, 3, 4, 4), {"all": slice(0, 48)}
    with ThreadPoolExecutor(4) as pool:
        for name in ("c4", "d4", "circular_shifts", "rotations"):
            errors = measure_symmetry(torch.nn.Flatten(), images, image_symmetries(name, 4), parts, with_layers=False)
            pool.submit(add_symmetry, tmp_path, [errors], np.zeros((2, 4, 4, 3), np.uint8), [], {})
    assert len([key for key in read_evaluation(tmp_path).arrays if key.startswith("symmetry_similarity/")]) == 4


def test_wrong_options_are_named(script: ModuleType, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        script.main(script.Config(str(tmp_path), data_dir=tiny_data))
    with pytest.raises(UserError, match="--num-images is 1: errors are relative"):
        script.main(script.Config("random:strided_cnn_tiny", dataset="random", num_images=1))
    folder = export(tmp_path / "run", "d4_resnet10_small_images", {"all": (0, 256)})
    with pytest.raises(UserError, match="can't take images of 40 x 40 pixels"):
        script.main(script.Config(folder, dataset="random", image_size=40, num_images=2))
    assert not (tmp_path / "run" / "results.json").exists()


def test_images_are_views_that_an_object_has(script: ModuleType, uneven_data: Path) -> None:
    split = ShardDataset(uneven_data, "test")
    for seed in range(5):
        pixels, labels = script.read_images(split, 12, seed)
        assert pixels.shape == (12, 32, 32, 3) and pixels.any(axis=(1, 2, 3)).all()
        assert labels.tolist() == split.labels.tolist()


def test_images_that_are_not_square_are_refused(script: ModuleType) -> None:
    class Wide:
        image_size, folder, num_objects = (8, 10), Path("wide"), 4

    with pytest.raises(UserError, match="wide have 8 x 10 pixels and symmetries are those of squares"):
        script.read_images(Wide(), 2, 0)
