"""seq-JEPA's optimiser, schedules and files are what they are said to be."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from recipes import seq_jepa
from ssl_equi.checkpoint import list_checkpoints, read_state
from ssl_equi.export.sequence_model import load_sequence_model
from ssl_equi.training.optimisation import follow_schedule, optimizer_of, target_momentum
from ssl_equi.views.options import ViewOptions
from tests.fakes import SmallConfig, numbers


def test_the_papers_optimiser_is_adamw_that_decays_neither_biases_nor_normalisations() -> None:
    config = seq_jepa.threediebench()
    with torch.device("meta"):
        objective = seq_jepa.build(config)
    optimizer = optimizer_of(objective, config)
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["weight_decay"], group["betas"]) for group in optimizer.param_groups] == [
        (1e-3, (0.9, 0.999)), (0.0, (0.9, 0.999)),
    ]  # fmt: skip
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert all(objective.get_parameter(name).ndim > 1 for name in decayed)
    assert all(objective.get_parameter(name).ndim == 1 for name in others)
    learning = {name for name in names.values() if not name.startswith("target_encoder.")}
    assert set(decayed) | set(others) == learning and len(decayed) + len(others) == len(learning)
    assert {"action_embedding.projection.weight", "aggregator.token"} <= set(decayed)


def test_the_papers_rate_and_momentum_follow_their_cosines_to_the_end() -> None:
    config = seq_jepa.threediebench()
    steps_per_epoch = 41_920 // 512
    total_steps = config.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1, requires_grad=True)], "rate_factor": 1.0}])
    rates = {}
    for step in (0, 10 * 81, config.warmup_steps - 1, config.warmup_steps, total_steps // 2, total_steps - 1):
        follow_schedule(optimizer, config, step, total_steps)
        rates[step] = optimizer.param_groups[0]["lr"]
    assert steps_per_epoch == 81 and config.warmup_steps == 20 * 81
    assert rates[0] == 1e-5
    assert rates[10 * 81] == pytest.approx((4e-4 + 1e-5) / 2)
    assert rates[config.warmup_steps - 1] < rates[config.warmup_steps] == pytest.approx(4e-4)
    assert rates[total_steps // 2] == pytest.approx((4e-4 + 1e-5) / 2, rel=0.05)
    assert rates[total_steps - 1] == pytest.approx(1e-5, rel=1e-9)
    momenta = [target_momentum(config, step, 101) for step in (0, 50, 100)]
    assert momenta == [pytest.approx(0.996), pytest.approx(0.998), 1.0]


@pytest.mark.usefixtures("quick_probes")
def test_a_run_follows_its_schedules_and_leaves_a_sequence_model(small_config: SmallConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = small_config(seq_jepa, out=folder, compare_with_random=False, save_every=5, warmup_steps=2)
    seq_jepa.main(config)
    lines = numbers(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    speeds = numbers(folder, "speed")
    rates = {line["step"]: line["learning_rate"] for line in lines + speeds if "learning_rate" in line}
    assert rates[2] == pytest.approx(config.learning_rate) and rates[6] == pytest.approx(config.final_learning_rate)
    assert any("agg/top1" in line for line in numbers(folder, "online_probe"))

    # At the last step the momentum is 1: the target stays where it was after the step before.
    before, after = (read_state(path, "objective") for path in list_checkpoints(folder / "checkpoints"))
    targets = [name for name in after if name.startswith("target_encoder.") and name.endswith("weight")]
    assert targets and all(torch.equal(before[name], after[name]) for name in targets)
    online = [name.removeprefix("target_") for name in targets]
    assert not any(torch.equal(before[name], after[name]) for name in online)
    assert not any(torch.equal(after[name], after[mine]) for name, mine in zip(targets, online, strict=True))

    model = load_sequence_model(folder / "sequence_model")
    actions = {"names": ["rotation"], "kinds": ["rotation"], "widths": [4]}
    assert model.sequences == {"source": "rendered", "actions": actions, "observed_views": 3}
    assert all(torch.equal(value, after[name]) for name, value in model.objective.state_dict().items())

    records = json.loads((folder / "results.json").read_text())["records"]
    aggregates = {(record["task"], record["part"]) for record in records if record["part"].startswith("agg@")}
    assert {("classification", f"agg@{views}") for views in (1, 2, 3)} <= aggregates
    assert "agg@" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("quick_probes")
def test_sequences_of_objects_that_move_are_told_of_rigid_motions(
    small_config: SmallConfig, tiny_moving_data: Path, tmp_path: Path
) -> None:
    moving = {"actions": ("pose_base",), "dataset": "3diebench-pt", "data_dir": tiny_moving_data}
    seq_jepa.main(small_config(seq_jepa, out=tmp_path / "run", compare_with_random=False, steps=2, **moving))
    model = load_sequence_model(tmp_path / "run" / "sequence_model")
    assert model.objective.config.action_dim == 7 and model.told.names == ("pose_base",)
    records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert {"leakage_rotation", "leakage_base_translation"} <= {record["task"] for record in records}


@pytest.mark.usefixtures("quick_probes")
def test_augmented_sequences_train_without_aggregate_records(small_config: SmallConfig, tmp_path: Path) -> None:
    config = small_config(seq_jepa, out=tmp_path / "run", compare_with_random=False, steps=2, observed_views=2)
    views = ViewOptions(source="augmented", preset="seq_jepa", action_transforms=("crop",))
    seq_jepa.main(dataclasses.replace(config, views=views, actions=("augmentation",)))
    model = load_sequence_model(tmp_path / "run" / "sequence_model")
    assert model.objective.config.action_dim == 4
    assert model.sequences["action_transforms"] == ["crop"]
    records = json.loads((tmp_path / "run" / "results.json").read_text())["records"]
    assert not any(record["part"].startswith("agg@") for record in records)
