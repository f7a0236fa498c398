"""Campaigns: what is run, kept, compared and told, and what campaign.toml may hold."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import campaign_page
import numpy as np
import pytest
from campaign import Config, Work, compared, main
from campaign_files import read_campaign, write_run
from scipy import stats

from ssl_equi.errors import UserError

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
title = "Rotation over training"
about = "What was expected."
seeds = [0, 1]
options = "--image-size 32"
[data]
many = "datasets/procedural.py --out {many}"
[[method]]
name = "sie"
recipe = "recipes/sie.py"
epochs = [3, 9]
images_per_object = 2
[[method]]
name = "vicreg"
recipe = "recipes/vicreg.py"
options = "--objective.projector 8 8"
epochs = [3, 9]
images_per_object = 2
label = "VICReg"
[[judge]]
name = "probes"
command = "evaluation/suite.py --encoder {run}"
figures = ["classification:top1", "relative_rotation:r2_uniform"]
[[claim]]
text = "SIE is better"
expected = "above"
first = "sie:equi"
second = "vicreg:all"
figure = "probes/relative_rotation:r2_uniform"
"""

SECOND_JUDGE = '[[judge]]\nname = "probes"\ncommand = ""\nfigures = []\n'


def campaign_in(folder: Path, content: str = CAMPAIGN) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "campaign.toml").write_text(content)
    return folder


# ---------------------------------------------------------------- campaign.toml


def test_the_cheap_runs_of_all_seeds_come_first(tmp_path: Path) -> None:
    campaign = read_campaign(campaign_in(tmp_path))
    names = [run.name for run in campaign.runs()]
    assert names == [f"{method}-{epochs}-seed{s}" for epochs in (3, 9) for s in (0, 1) for method in ("sie", "vicreg")]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds = [0, 1]", "seeds = [0,", "is no TOML"),
        ("seeds = [0, 1]", "", "has no 'seeds'"),
        ("seeds = [0, 1]", "seeds = 3", "seeds, is 3: give a list"),
        ("seeds = [0, 1]", 'seeds = ["0"]', "seeds, is '0': give a int"),
        ("seeds = [0, 1]", "seeds = []", "at least one method, one seed and one judge"),
        ("images_per_object = 2\n[[method]]", "image = 2\n[[method]]", "has 'image', which is none of name, recipe"),
        ("epochs = [3, 9]\nimages_per_object = 2\nlabel", "epochs = [3]\nimages_per_object = 2\nlabel", "vicreg has 1"),
        ('name = "vicreg"', 'name = "sie"', "two methods named 'sie'"),
        ('first = "sie:equi"', 'first = "sei:equi"', "the method 'sei': choose from sie, vicreg"),
        ('figure = "probes/', 'figure = "pairs/', "a claim of 'pairs/relative_rotation:r2_uniform': choose from pr"),
        ("[[judge]]", SECOND_JUDGE + "[[judge]]", "sie by two judges named 'probes'"),
        ('"classification:top1"', '"top1"', "the figure 'top1': write TASK:METRIC"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_campaign_is_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in CAMPAIGN
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        read_campaign(campaign_in(tmp_path, CAMPAIGN.replace(old, new, 1)))


def test_a_folder_without_a_campaign_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no campaign\.toml"):
        read_campaign(tmp_path)
    folder = campaign_in(tmp_path)
    with pytest.raises(UserError, match="such as sie-3-seed0"):
        main(Config(folder, tmp_path / "work", only=("sie-4-*",)))
    with pytest.raises(UserError, match=r"\{mayn\}, which stands for nothing: choose from many, run"):
        Work(read_campaign(folder), tmp_path, False, {}).command("a.py --data-dir {mayn}", run=tmp_path)
    for text in ("mayn=/data", "many", "many="):
        with pytest.raises(UserError, match=f"--data is '{text}': give NAME=FOLDER with a name of many"):
            main(Config(folder, tmp_path / "work", data=(text,)))
    without_command = CAMPAIGN.replace('many = "datasets/procedural.py --out {many}"', 'many = ""')
    with pytest.raises(UserError, match="many is not built by the campaign: give its folder with --data many=FOLDER"):
        main(Config(campaign_in(tmp_path / "other", without_command), tmp_path / "work"))


# ---------------------------------------------------------------- runs


def tiny_campaign(folder: Path, epochs: str) -> Path:
    """Runs of VICReg on a data set `many`, judged by nearest neighbours."""
    options = "--data-dir {many} --image-size 32 --encoder strided_cnn_nano --batch-size 8 --threads 1 --log-every 1"
    content = CAMPAIGN.replace('"--image-size 32"', f'"{options}"').replace("seeds = [0, 1]", "seeds = [0]")
    content = content.replace(
        "--encoder {run}", "--encoder {run} --data-dir {many} --seeds 1 --no-compare-with-random --tasks knn",
    )  # fmt: skip
    for metric in ("classification:top1", "relative_rotation:r2_uniform"):
        content = content.replace(metric, "knn:top1")
    return campaign_in(folder, content.replace("epochs = [3, 9]", f"epochs = [{epochs}]"))


def call_of(folder: Path, data: Path, work: Path) -> list[str]:
    call = [sys.executable, "tools/campaign.py", str(folder), "--work", str(work), "--only", "vicreg-*"]
    return [*call, "--data", f"many={data}"]


def said_by(call: list[str]) -> str:
    return subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def same_signals() -> Iterator[None]:
    """What this process does with signals is as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_is_trained_judged_kept_and_repeated_equal_to_the_bit(
    tiny_data: Path, tmp_path: Path, same_signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_campaign(tmp_path / "campaign", epochs="3")

    def said_of(again: bool) -> str:
        main(Config(folder, tmp_path / "work", only=("vicreg-*",), data=(f"many={tiny_data}",), again=again))
        return capsys.readouterr().out

    said = said_of(again=False)
    assert "1 of 1 runs to do" in said and "vicreg-3-seed0: 144 images" in said
    kept = json.loads((folder / "runs" / "vicreg-3-seed0.json").read_text())
    assert kept["steps"] == 9 and len(kept["training"]["loss"]) == 9
    (figure,) = kept["figures"]
    assert (figure["task"], figure["metric"], figure["part"], len(figure["resampled"])) == ("knn", "top1", "all", 200)
    assert abs(np.mean(figure["resampled"]) - figure["value"]) < 0.1
    assert "vicreg-3-seed0: all 1 figures equal to the bit" in said_of(again=True)
    assert "0 of 1 runs to do" in said_of(again=False)


@pytest.mark.slow
def test_a_campaign_that_was_stopped_goes_on_as_if_it_had_not_been(tiny_data: Path, tmp_path: Path) -> None:
    kept = []
    for name in ("stopped", "whole"):
        folder = tiny_campaign(tmp_path / name, epochs="200")
        call = call_of(folder, tiny_data, tmp_path / name / "work")
        if name == "stopped":
            process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            log = tmp_path / name / "work" / "runs" / "vicreg-200-seed0" / "metrics.jsonl"
            while process.poll() is None and not (log.exists() and log.stat().st_size > 1000):
                time.sleep(0.05)
            process.terminate()
            said = process.communicate()[0]
            assert "stopped: 1 runs go on when the same command is given again" in said
            assert not (folder / "runs").exists()
        said_by(call)
        kept.append(json.loads((folder / "runs" / "vicreg-200-seed0.json").read_text()))
    assert [run["figures"] for run in kept[:1]] == [run["figures"] for run in kept[1:]]
    assert kept[0]["training"] == kept[1]["training"] and kept[0]["steps"] == 600


def test_a_repeated_run_tells_what_differs() -> None:
    figure = {"judge": "probes", "task": "knn", "part": "all", "metric": "top1", "value": 0.5}
    kept = {"cpu": "A", "figures": [figure]}
    assert (
        compared({"cpu": "B", "figures": [figure | {"value": 0.75}]}, kept)
        == "figures differ by up to 0.25 (probes/knn all), on B after A"
    )
    assert compared({"cpu": "A", "figures": []}, kept).startswith("other figures")


# ---------------------------------------------------------------- tables


def keep(folder: Path, method: str, budget: int, seed: int, part: str, value: float, spread: float = 0.0) -> None:
    epochs = (3, 9)[budget]
    resampled = [value + spread * (-1) ** draw for draw in range(200)]
    figure = {
        "judge": "probes", "task": "relative_rotation", "part": part, "metric": "r2_uniform", "value": value,
        "baseline": 0.0, "baseline_name": "constant", "random_encoder": 0.125 if part == "all" else None,
        "n": 40, "num_objects": 4, "split": "test", "protocol": "p", "resampled": resampled,
    }  # fmt: skip
    content: dict[str, Any] = {
        "run": f"{method}-{epochs}-seed{seed}", "method": method, "budget": budget, "seed": seed, "steps": epochs,
        "images": 1000 * epochs, "hours": 0.5, "cpu": "a CPU", "device": "2 CPU cores", "commit": "abc", "torch": "2",
        "timm": "1", "training": {"loss": [2.0, 1.0], "action_gain": [0.0, 0.25]}, "figures": [figure],
    }  # fmt: skip
    write_run(folder / "runs" / f"{content['run']}.json", content)


def test_the_page_shows_means_claims_and_what_is_missing(tmp_path: Path) -> None:
    folder = campaign_in(tmp_path)
    for seed, value in ((0, 0.5), (1, 0.6)):
        keep(folder, "sie", 1, seed, "equi", value, spread=0.1)
        keep(folder, "vicreg", 1, seed, "all", value - 0.3, spread=0.1)
    campaign_page.main(campaign_page.Config(folder))
    page = (folder / "README.md").read_text()
    assert "| method | part | 9 k images |" in page and "| constant | - | 0.000 |" in page
    assert "| sie | `equi` | 0.550 ± 0.071 |" in page and "| VICReg | `all` | 0.250 ± 0.071 |" in page
    assert "| random encoder, as of VICReg | `all` | 0.125 |" in page and "as of sie" not in page
    assert "4 of 8 runs are finished: 2.0 hours" in page and "0.0 25.0" in page
    claim = next(line for line in page.splitlines() if line.startswith("| SIE is better"))
    assert "+0.300 [0.200, 0.400]" in claim and claim.endswith("| 0.198 | shown at 9 k images |")
    assert "<svg" in (folder / "curves.svg").read_text()


def test_a_difference_counts_objects_as_pairs_and_seeds_as_independent() -> None:
    objects = np.linspace(-1, 1, 200)
    low, high = campaign_page.paired_interval(np.stack([objects + 1] * 3), np.stack([objects] * 3))
    assert low == pytest.approx(1) and high == pytest.approx(1), "equal objects are no part of the difference"
    low, high = campaign_page.paired_interval(np.stack([objects + 1, objects + 3]), np.stack([objects] * 2))
    assert (low, high) == pytest.approx((1, 3)), "with two seeds, each alone is drawn in a quarter of the draws"


def test_without_objects_the_interval_is_welchs_over_seeds() -> None:
    first, second = (1.0, 1.2, 1.4), (0.5, 0.6, 0.7)
    low, high = campaign_page.interval_over_seeds(first, second)
    error = math.sqrt(0.2**2 / 3 + 0.1**2 / 3)
    freedom = error**4 / ((0.2**2 / 3) ** 2 / 2 + (0.1**2 / 3) ** 2 / 2)
    assert (low + high) / 2 == pytest.approx(0.6)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error)


def test_a_claim_is_shown_only_by_an_interval_above_zero() -> None:
    def verdict(interval: tuple[float, float] | None) -> str:
        return campaign_page.verdict(campaign_page.Difference("9 k images", True, 0.0, interval, True, None))

    intervals = ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1), (0.001, 0.009), None)
    assert [verdict(interval).removesuffix(" at 9 k images") for interval in intervals] == [
        "shown", "not decided", "the other way", "equal within 0.01", "not measured",
    ]  # fmt: skip


def test_a_claim_waits_for_all_seeds_of_both(tmp_path: Path) -> None:
    folder = campaign_in(tmp_path)
    for budget, sie_seeds in ((0, 2), (1, 1)):
        for seed in range(2):
            keep(folder, "vicreg", budget, seed, "all", 0.1)
        for seed in range(sie_seeds):
            keep(folder, "sie", budget, seed, "equi", 0.5)
    campaign_page.main(campaign_page.Config(folder))
    claim = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| SIE is better"))
    assert claim.count("+0.400") == 2 and claim.endswith("| shown at 3 k images |")
