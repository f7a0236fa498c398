"""What recipes do around their loop: online probes that don't disturb, an ending that changes nothing."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ssl_equi.data.images import normalise_views
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.sources import DataSource, open_data
from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, RunError, UserError
from ssl_equi.evaluation import publish
from ssl_equi.evaluation.encoders import RANDOM_ENCODER_SEED, EncoderSource
from ssl_equi.evaluation.protocol import AUGMENTATION_EQUIVARIANCE, CORE_TASKS, PROBE_PROTOCOLS, ProbeProtocol
from ssl_equi.evaluation.report import write as report
from ssl_equi.evaluation.results import read_records
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from ssl_equi.options import check_options
from ssl_equi.training import ending
from ssl_equi.training.config import PretrainingConfig
from ssl_equi.training.ending import Ending, probed_parts
from ssl_equi.training.folder import set_aside_earlier_results
from ssl_equi.training.pretraining import DataIdentity, FollowingProbes
from ssl_equi.training.run import Run
from tests.fakes import NEEDS_TRANSLATIONS, ExtraState, forget_processes, process_of_its_own

PAIRS = {"source": "rendered", "actions": "rotation", "observed_views": 1}


@pytest.fixture(autouse=True)
def start_afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    quick = ProbeProtocol(name="quick", classification_epochs=1, rotation_epochs=1, rotation_hidden=(16,))
    monkeypatch.setitem(PROBE_PROTOCOLS, "embedded", lambda: quick)
    with process_of_its_own():
        yield


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> PretrainingConfig:
    return PretrainingConfig(out=tmp_path / "run", data_dir=tiny_data, image_size=32, batch_size=8)


@pytest.fixture
def data(config: PretrainingConfig) -> DataSource:
    return open_data(config.dataset, config.data_dir, config.evaluation_split, config.image_size)


def make_objective(config: PretrainingConfig) -> SIE:
    torch.manual_seed(config.seed)
    return SIE(create_encoder(config.encoder, config.image_size), SIEConfig(projector=(16, 16, 16)))


def started_run(config: PretrainingConfig, objective: nn.Module) -> Run:
    run = Run(config, "sie")
    run.prepare(objective, lambda module: torch.optim.Adam(module.parameters()))
    run.resume()
    return run


def state_hash(module: nn.Module) -> str:
    """Of every parameter and buffer, and of the training mode of every module."""
    digest = hashlib.sha256(repr([part.training for part in module.modules()]).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy(force=True).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("step", [Ending.check, Ending.finish])
def test_the_ending_leaves_the_objective_and_the_random_generator_as_they_were(
    step: Callable[[Ending], None], config: PretrainingConfig, data: DataSource
) -> None:
    """Also when it is tried before the training, which leaves no folder either."""
    objective, tried = make_objective(config), step is Ending.check
    run = Run(config, "sie") if tried else started_run(config, objective)
    before, generator = state_hash(objective), torch.get_rng_state()
    step(Ending(run, config, objective, data, PAIRS))
    assert state_hash(objective) == before
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert run.folder.exists() != tried


def test_an_export_that_would_fail_is_named_before_training(config: PretrainingConfig, data: DataSource) -> None:
    objective = make_objective(config)
    run = Run(config, "sie")
    with pytest.raises(CheckpointError, match="holds another architecture"):
        Ending(run, dataclasses.replace(config, encoder="resnet10t"), objective, data, PAIRS).check()
    objective.encoder.counter = ExtraState(1, 1)
    with pytest.raises(CheckpointError, match=r"counter\._extra_state of the .* is a dict"):
        Ending(run, config, objective, data, PAIRS).check()


def test_a_question_that_fails_costs_neither_numbers_nor_page(
    config: PretrainingConfig, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do a section and pictures that can't be drawn; a tracker is shown the others."""

    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(Ending, "ask_more", fail)
    monkeypatch.setattr(publish, "view_sheet", fail)
    monkeypatch.setattr(report, "headline_section", fail)
    objective = make_objective(config)
    run = started_run(dataclasses.replace(config, tracker="tensorboard"), objective)
    with pytest.warns(UserWarning) as warned:
        Ending(run, config, objective, data, PAIRS).finish()
    told = " ".join(str(warning.message) for warning in warned)
    for what in ("further questions: not answered", "pictures of views", "section 'headline' can't be drawn"):
        assert what in told
    assert {record.task for record in read_records(run.folder / "results.json")} >= {"classification"}
    notes = " ".join(json.loads((run.folder / "results.json").read_text())["run"]["notes"])
    assert "further questions" in notes and "pictures of views" in notes
    page = (run.folder / "report.html").read_text()
    assert 'id="results"' in page and 'id="errors"' in page
    shown = EventAccumulator(str(run.folder)).Reload().Tags()
    assert "final/classification/all/top1" in shown["scalars"] and "results/table/text_summary" in shown["tensors"]
    pictures = {name.split("/")[1] for name in shown["images"]}
    assert pictures == {"nearest_neighbours", "angle_errors", "recall", "singular_values"}


def test_the_random_encoder_is_one_that_no_seed_trains(
    config: PretrainingConfig, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same architecture, other weights; and the same ones whatever the seed of the run."""
    probed: list[tuple[nn.Module, nn.Module]] = []

    class SeenError(Exception):
        """The encoders are there, and need no probing."""

    def look(source: EncoderSource, *arguments: Any, **options: Any) -> Any:
        random_encoder = source.untrained()
        assert random_encoder is not None
        probed.append((source.module, random_encoder))
        raise SeenError

    monkeypatch.setattr(ending, "evaluate", look)
    for seed in (0, 1):
        forget_processes()
        seeded = dataclasses.replace(config, seed=seed, out=Path(f"{config.out}-{seed}"))
        objective = make_objective(seeded)
        with pytest.raises(SeenError):
            Ending(started_run(seeded, objective), seeded, objective, data, PAIRS).finish()
        assert probed[-1][0] is objective.encoder
    (first, random_first), (second, random_second) = probed
    first_layer = next(name for name, value in first.state_dict().items() if value.dim() == 4)
    weights = [module.state_dict()[first_layer] for module in (first, second, random_first, random_second)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], weights[3])
    assert {name: value.shape for name, value in first.state_dict().items()} == {
        name: value.shape for name, value in random_first.state_dict().items()
    }
    assert RANDOM_ENCODER_SEED > 2**31 - 1, "a seed that someone may train with"


def test_the_ending_asks_one_of_each_kind_and_what_the_protocol_states(
    config: PretrainingConfig, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    essl = dataclasses.replace(
        PROBE_PROTOCOLS["essl"](), classification_epochs=1, rotation_epochs=1, absolute_rotation_epochs=1,
        rotation_hidden=(16,), knn_weighted_neighbours=5,
    )  # fmt: skip
    monkeypatch.setitem(PROBE_PROTOCOLS, "essl", lambda: essl)
    chosen = dataclasses.replace(config, probe_protocol="essl", compare_with_random=False)
    objective = make_objective(chosen)
    run = started_run(chosen, objective)
    Ending(run, chosen, objective, data, PAIRS).finish()
    records = read_records(run.folder / "results.json")
    expected = {*CORE_TASKS, AUGMENTATION_EQUIVARIANCE, "knn_weighted", "action_gain"} - {*NEEDS_TRANSLATIONS}
    assert {record.task for record in records} == expected
    assert {record.protocol for record in records} == {"essl_cached"}


def test_the_ending_asks_the_tasks_that_are_named_and_looks_them_up_before_the_first_step(
    config: PretrainingConfig, data: DataSource
) -> None:
    chosen = dataclasses.replace(config, tasks=("colour", "action_gain"), compare_with_random=False)
    objective = make_objective(chosen)
    run = started_run(chosen, objective)
    misspelt = dataclasses.replace(chosen, tasks=("color",))
    with pytest.raises(UserError, match="there is no task 'color': did you mean colour"):
        Ending(run, misspelt, objective, data, PAIRS).check()
    Ending(run, chosen, objective, data, PAIRS).finish()
    assert {record.task for record in read_records(run.folder / "results.json")} == {"colour", "action_gain"}


def test_without_an_evaluation_the_encoder_is_exported_and_nothing_else(
    config: PretrainingConfig, data: DataSource, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = dataclasses.replace(config, evaluate=False)
    objective = make_objective(chosen)
    run = started_run(chosen, objective)
    Ending(run, chosen, objective, data, PAIRS).finish()
    assert (run.folder / "encoder").is_dir() and (run.folder / "predictor").is_dir()
    assert not list(run.folder.glob("results*")) and not (run.folder / "report.html").exists()
    assert f"evaluation/suite.py --encoder {run.folder}" in capsys.readouterr().out
    with pytest.raises(UserError, match="--no-compare-with-random is given and has no effect: leave out --no-e"):
        check_options(dataclasses.replace(chosen, compare_with_random=False), config)


def test_the_exported_labels_come_from_the_data(config: PretrainingConfig, data: DataSource, tmp_path: Path) -> None:
    objective = make_objective(config)
    normalised = dataclasses.replace(data, mean_rgb=(0.1, 0.2, 0.3), std_rgb=(0.4, 0.5, 0.6))
    exports = Ending(Run(config, "sie"), config, objective, normalised, PAIRS).exports(objective)
    exports["encoder"].write(tmp_path / "encoder")
    exported = json.loads((tmp_path / "encoder" / "config.json").read_text())
    labels = exported["pretrained_cfg"]
    assert labels["mean"] == [0.1, 0.2, 0.3] and labels["std"] == [0.4, 0.5, 0.6]
    assert labels["input_size"] == [3, 32, 32]
    assert labels["tag"] == "sie_3diebench_p"
    assert labels["license"] == "apache-2.0"
    assert exported["architecture"] == "strided_cnn_tiny"
    assert exported["ssl_equi"]["trained_on"] == f"3diebench-p {data.train.fingerprint[:16]}"
    assert exported["ssl_equi"]["parts"] == {"all": [0, 512], "inv": [0, 256], "equi": [256, 512]}


def test_an_objective_without_parts_is_probed_for_those_of_its_encoder(config: PretrainingConfig) -> None:
    whole = {"all": slice(0, 512)}
    assert probed_parts(VICReg(create_encoder("strided_cnn_tiny", 32), VICRegConfig())) == whole
    symmetric = create_encoder("group_averaged", 32, features="both")
    both = {"all": slice(0, 2560), "inv": slice(0, 512), "equi": slice(512, 2560)}
    assert probed_parts(VICReg(symmetric, VICRegConfig())) == both
    # Invariants alone are all that there is, and SIE has parts of its own.
    assert probed_parts(VICReg(create_encoder("group_averaged", 32), VICRegConfig())) == whole
    split = {"all": slice(0, 2560), "inv": slice(0, 1280), "equi": slice(1280, 2560)}
    assert probed_parts(SIE(symmetric, SIEConfig())) == split


def test_weights_carry_the_licence_of_what_they_learnt_from(config: PretrainingConfig, data: DataSource) -> None:
    """3DIEBench is made of ShapeNet, for non-commercial use only; other sets in its layout have terms of their own."""
    objective, run = make_objective(config), Run(config, "sie")
    for terms, expected in (("CC-BY-NC-4.0", "cc-by-nc-4.0"), ("none stated", "other")):
        posed = dataclasses.replace(data, name="3diebench", license=terms)
        card = Ending(run, config, objective, posed, PAIRS).encoder_card(objective)
        assert (card.license, card.tag) == (expected, "sie_3diebench")
        assert card.trained_on == f"{data.train.source} {data.train.fingerprint[:16]}"
    unstated = dataclasses.replace(data, name="imagenet", license=None)
    card = Ending(run, config, objective, unstated, PAIRS).encoder_card(objective)
    assert card.license == "other"


def gradients_of_three_steps(
    config: PretrainingConfig, data: DataSource, with_probes: bool
) -> tuple[list[torch.Tensor], torch.Tensor, dict[str, float]]:
    forget_processes()
    objective = make_objective(config)
    run = started_run(config, objective)
    torch.manual_seed(5)
    probes = FollowingProbes(run, objective, data) if with_probes else None
    gradients = []
    with stored_loader(data.train, global_batch_size=8, seed=0) as loader:
        for _, batch in zip(range(3), loader.batches()):
            views = normalise_views(batch.images, data.mean_rgb, data.std_rgb)
            output = objective(views, torch.ones(8, 4))
            output.loss.backward()
            if probes is not None:
                probes.update(output, batch)
            gradients += [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
            objective.zero_grad(set_to_none=True)
    return gradients, torch.get_rng_state(), probes.metrics().read() if probes is not None else {}


def test_online_probes_disturb_neither_the_gradients_nor_the_random_generator(
    config: PretrainingConfig, data: DataSource
) -> None:
    without, generator_without, _ = gradients_of_three_steps(config, data, with_probes=False)
    with_probes, generator_with, metrics = gradients_of_three_steps(config, data, with_probes=True)
    assert len(without) == len(with_probes) > 0
    assert all(torch.equal(first, second) for first, second in zip(without, with_probes))
    assert torch.equal(generator_without, generator_with)
    assert {name for name in metrics if name.endswith("/top1")} == {"all/top1", "inv/top1", "equi/top1"}


def test_a_checkpoint_knows_its_data(config: PretrainingConfig, data: DataSource) -> None:
    identity = DataIdentity(data.train)
    identity.load_state_dict(identity.state_dict())
    with pytest.raises(RunError, match=r"was trained on other data \(elsewhere\).*resume with the first --data-dir"):
        identity.load_state_dict({"plan_sha256": "0", "source": "elsewhere"})


def test_earlier_results_are_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    set_aside_earlier_results(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        (tmp_path / "results.json").write_text(text)
        set_aside_earlier_results(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "results-earlier-1.json": "first",
        "results-earlier-2.json": "second",
    }
