"""Questions about sequences on synthetic features whose answers are known, asked of aggregators that are known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.sequences.embed import POSITION_NAMES, FeatureSequences, sequences_of_cache
from ssl_equi.evaluation.sequences.heads import aggregate_views, augmentation_targets, latent_targets
from ssl_equi.evaluation.sequences.tasks import (
    QUICK,
    SequenceProtocol,
    probe_sequences,
    quick_sequence_results,
)
from ssl_equi.evaluation.tables import print_records
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.poses import matrix_of_action
from ssl_equi.geometry.rotations import quat_multiply, quat_to_matrix
from ssl_equi.latents.actions import actions_of
from ssl_equi.latents.schema import THREEDIEBENCH, THREEDIEBENCH_T
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.views.actions import action_columns
from tests.fakes import feature_cache

NUM_CLASSES = 4
HEADS = ProbeProtocol(classification_epochs=40, learning_rate=5e-3, rotation_epochs=3, rotation_hidden=(16,))


class Mean(nn.Module):
    """Aggregates by averaging, and keeps what it was given."""

    num_features, aggregate_width, aggregator_takes_actions = 8, 8, True

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, Tensor | None]] = []

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        self.given.append((features.clone(), None if actions is None else actions.clone()))
        return features.mean(dim=1)


class LastView(Mean):
    """The worst leak: the aggregate is the last view."""

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        return features[:, -1]


class ClassColumns(Mean):
    """Averages what tells of the class and drops the rest."""

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        return features[..., :NUM_CLASSES].mean(dim=1)


class SumOfActions(Mean):
    """What a perfect path integrator keeps."""

    def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
        assert actions is not None
        return torch.cat([actions.sum(dim=1), features.mean(dim=1)], dim=1)


def positions(count: int, length: int = 6, seed: int = 0, noise: float = 1.5) -> FeatureSequences:
    """Two sequences of each object; the class shows in columns 0 to 3 under noise, the position in columns 4 and 5."""
    generator = torch.Generator().manual_seed(seed)
    objects = torch.arange(count).repeat_interleave(2)
    labels = objects % NUM_CLASSES
    places = torch.rand(2 * count, length, 2, generator=generator)
    features = 0.05 * torch.randn(2 * count, length, 8, generator=generator)
    features[..., :NUM_CLASSES] += noise * torch.randn(2 * count, length, NUM_CLASSES, generator=generator)
    features[..., :NUM_CLASSES] += nn.functional.one_hot(labels, NUM_CLASSES)[:, None]
    features[..., 4:6] += 3 * places
    return FeatureSequences(features, places[:, None] - places[:, :, None], labels, objects, POSITION_NAMES)


def poses(num_objects: int, seed: int, num_views: int = 6, num_latents: int = 7) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(num_objects, num_views, num_latents, generator=generator)
    latents[..., :3] = (latents[..., :3] - 0.5) * torch.pi
    latents[..., 7:] -= 0.5
    quats_xyzw = quat_xyzw_from_latents(latents)
    features = torch.randn(num_objects, num_views, 8, generator=generator)
    features[..., :4] = quats_xyzw
    return feature_cache(features, torch.arange(num_objects) % NUM_CLASSES, latents, quats_xyzw)


def small_seq_jepa(**changes) -> SeqJEPA:
    class Identity(nn.Module):
        num_features = 8

        def forward(self, images: Tensor) -> Tensor:
            return images

    torch.manual_seed(0)
    config = SeqJEPAConfig(
        action_width=4, layers=1, heads=2, feedforward_width=16, predictor_hidden_width=16, **changes
    )
    return SeqJEPA(Identity(), config)


def ask(model: nn.Module, *questions: str, lengths=(1, 2, 3, 6), train=None, test=None, **changes):
    protocol = SequenceProtocol(questions=questions, lengths=lengths, leakage_lengths=(1, 3), heads=HEADS, **changes)
    train, test = train or positions(300), test or positions(150, seed=1)
    return probe_sequences(model, train, test, NUM_CLASSES, protocol, split_name="val", seed=3)


def table(records: list[ProbeRecord]) -> dict[tuple[str, str, str], float]:
    return {(record.task, record.part, record.metric): record.value for record in records}


def test_more_views_show_a_class_that_a_single_view_hides():
    values = table(ask(Mean(), "classification").records)
    top1 = [values["classification", f"agg@{length}", "top1"] for length in (1, 2, 3, 6)]
    assert top1[0] == values["classification", "all@1", "top1"]  # the mean of one view is the view
    assert all(later > earlier + 0.03 for earlier, later in itertools.pairwise(top1))
    assert top1[0] < 0.55 and top1[-1] > 0.6


def test_the_aggregate_is_given_the_first_views_and_the_actions_between_them():
    model, train, test = Mean(), positions(20), positions(10, seed=1)
    ask(model, "classification", lengths=(1, 3), train=train, test=test)
    (one, none), (one_test, _), (three, two_actions), (three_test, _) = model.given
    assert torch.equal(one, train.features[:, :1]) and torch.equal(one_test, test.features[:, :1])
    assert none.shape == (40, 0, 2)
    assert torch.equal(three, train.features[:, :3]) and torch.equal(three_test, test.features[:, :3])
    assert torch.equal(two_actions, torch.stack([train.actions[:, 0, 1], train.actions[:, 1, 2]], dim=1))


def test_windows_follow_each_other():
    sequences, model = positions(10), Mean()
    [aggregates] = aggregate_views(model, [sequences], 2, windows=3)
    assert torch.allclose(aggregates, sequences.features.unflatten(1, (3, 2)).mean(dim=2))
    assert torch.equal(model.given[2][1], sequences.actions[:, 4, 5][:, None])


def test_ablations_zero_what_they_say():
    sequences, model = positions(10), Mean()
    aggregate_views(model, [sequences], 3, without_images=True)
    aggregate_views(model, [sequences], 3, without_actions=True)
    (no_images, actions), (images, no_actions) = model.given
    assert torch.equal(no_images, torch.zeros(20, 3, 8)) and torch.equal(actions, sequences.steps(0, 2))
    assert torch.equal(images, sequences.features[:, :3]) and torch.equal(no_actions, torch.zeros(20, 2, 2))


def test_an_aggregator_without_actions_is_given_none():
    model = Mean()
    model.aggregator_takes_actions = False
    aggregate_views(model, [positions(5)], 3)
    assert model.given[0][1] is None


def test_a_model_is_told_its_columns_and_asked_for_all():
    told = [replace(positions(count, seed=count), told_columns=(1,)) for count in (200, 100)]
    model = Mean()
    values = table(ask(model, "pair_action", "leakage", train=told[0], test=told[1]).records)
    assert {actions.shape[2] for _, actions in model.given} == {1}
    assert values["pair_position", "all", "r2_uniform"] > 0.95


def test_an_aggregate_that_keeps_the_last_view_is_found_out():
    leaks, keeps_class = [table(ask(model, "leakage").records) for model in (LastView(), ClassColumns())]
    for length in (1, 3):
        assert leaks["leakage_position", f"agg@{length}", "r2_uniform"] > 0.95
        assert abs(keeps_class["leakage_position", f"agg@{length}", "r2_uniform"]) < 0.1
        for values in (leaks, keeps_class):
            assert values["leakage_position", f"all@{length}", "r2_uniform"] > 0.95


def test_leakage_is_asked_of_last_views_with_the_action_between_them():
    """With position 0 in all but the last views of the windows, a mean shows a third of the last position."""
    train, test = positions(300, noise=0), positions(100, seed=1, noise=0)
    for sequences in (train, test):
        for view in (0, 1, 3, 4):
            sequences.features[:, view, 4:6] = 0
    values = table(ask(Mean(), "leakage", train=train, test=test).records)
    assert values["leakage_position", "agg@3", "r2_uniform"] > 0.9


def test_the_oracle_composes_positions_and_rotations_exactly():
    train, test = [sequences_of_cache(poses(40, seed), ["rotation"], 6, 2, seed=0) for seed in (0, 1)]
    rotations = ask(Mean(), "path_integration", lengths=(1, 3, 5), train=train, test=test)
    places = ask(Mean(), "path_integration", lengths=(1, 3, 5))
    for length in (1, 3, 5):
        assert table(rotations.records)["path_rotation", f"oracle@{length}", "r2_uniform"] == pytest.approx(1, abs=1e-9)
        angle_deg = table(rotations.records)["path_rotation", f"oracle@{length}", "angle_deg_median"]
        assert angle_deg == pytest.approx(0, abs=1e-3)
        assert table(places.records)["path_position", f"oracle@{length}", "r2_uniform"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["pose_base", "pose_object"])
def test_rigid_motions_are_asked_for_by_rotation_and_translation(kind: str):
    caches = [poses(count, seed, num_latents=10) for seed, count in enumerate((60, 30))]
    train, test = [sequences_of_cache(cache, [kind], 6, 2, seed=0, ask_for_hues=True) for cache in caches]
    model = SumOfActions()
    results = ask(model, *SequenceProtocol().questions, lengths=(1, 3, 5), train=train, test=test)
    frame = kind.removeprefix("pose_")
    assert {record.task for record in results.records if record.part != "all@1"} >= {
        f"{question}_{target}" for question in ("pair", "leakage", "path")
        for target in ("rotation", f"{frame}_translation")
    }  # fmt: skip
    values = table(results.records)
    for length in (1, 3, 5):
        assert values[f"path_{frame}_translation", f"oracle@{length}", "r2_uniform"] == pytest.approx(1, abs=1e-9)


def test_quick_records_of_a_model_that_is_told_of_rigid_motions():
    caches = [poses(12, seed, num_latents=10) for seed in (0, 1)]
    records = quick_sequence_results(small_seq_jepa(action_dim=7), *caches, ["pose_base"], NUM_CLASSES).records
    assert {record.task for record in records} == {"classification", "leakage_rotation", "leakage_base_translation"}
    assert all(np.isfinite(record.value) for record in records)


def test_composition_is_the_product_in_order():
    target = latent_targets(actions_of(THREEDIEBENCH, ["rotation"]))[0]
    steps = nn.functional.normalize(torch.randn(7, 3, 4, dtype=torch.float64), dim=2)
    expected = quat_multiply(quat_multiply(steps[:, 0], steps[:, 1]), steps[:, 2])
    assert torch.allclose(target.composed(steps), expected)
    position = augmentation_targets(POSITION_NAMES)[0]
    assert torch.allclose(position.composed(steps[..., :2]), steps[..., :2].sum(dim=1))
    rotation, translation = latent_targets(actions_of(THREEDIEBENCH_T, ["pose_base"]))
    motions = torch.cat([steps, torch.randn(7, 3, 3, dtype=torch.float64)], dim=-1)
    matrices = matrix_of_action(motions)
    product = matrices[:, 0] @ matrices[:, 1] @ matrices[:, 2]
    assert torch.allclose(quat_to_matrix(rotation.composed(motions)), product[:, :3, :3])
    assert torch.allclose(translation.composed(motions), product[:, :3, 3])


def test_a_path_is_integrated_by_who_sums_the_actions_and_lost_without_them():
    values = table(ask(SumOfActions(), "path_integration", lengths=(1, 3, 5)).records)
    for length in (1, 3, 5):
        assert values["path_position", f"agg@{length}", "r2_uniform"] > 0.99
        assert values["path_position", f"agg@{length} no actions", "r2_uniform"] < 0.2
        assert values["path_position", f"agg@{length} no images", "r2_uniform"] > 0.9
    blind = table(ask(ClassColumns(), "path_integration", lengths=(1, 5)).records)
    assert blind["path_position", "agg@1", "r2_uniform"] > 0.99  # trivial: the last step is the path
    assert blind["path_position", "agg@5", "r2_uniform"] < 0.7  # the last step alone


def test_every_record_has_its_baseline_and_its_origin(capsys, monkeypatch):
    train, test = [sequences_of_cache(poses(30, seed), ["rotation_color"], 6, 2, seed=0) for seed in (0, 1)]
    results = ask(small_seq_jepa(action_dim=6), *SequenceProtocol().questions, train=train, test=test)
    assert not {record.task for record in results.records} ^ {
        "classification", "pair_rotation", "pair_hues", "leakage_rotation", "leakage_hues", "path_rotation",
    }  # fmt: skip
    for record in results.records:
        assert (record.split, record.seed, record.num_objects) == ("val", 3, 30)
        assert record.protocol == "ssl_equi_sequences_v1" and record.random_encoder is None
        if record.metric == "top1":
            assert (record.baseline_name, record.baseline) == ("majority class", pytest.approx(8 / 30))
        elif record.metric == "r2_uniform":
            assert (record.baseline_name, record.baseline) == ("constant", pytest.approx(0, abs=1e-9))
        elif record.metric == "angle_deg_median":
            assert record.baseline > 60
    tasks = [record.task for record in results.records]
    assert tasks == sorted(tasks, key=list(dict.fromkeys(tasks)).index)  # a task's records stand together
    assert results.notes == ("path_integration: M = 6 is left out, because sequences have 6 views",)
    monkeypatch.setenv("COLUMNS", "80")
    print_records(results.records, results.notes)
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def test_lengths_that_do_not_fit_are_left_out_with_a_note():
    train, test = positions(40, length=3), positions(20, length=3, seed=1)
    results = ask(Mean(), *SequenceProtocol().questions, lengths=(1, 3, 4), train=train, test=test)
    assert {record.part for record in results.records if record.task == "classification"} == {"all@1", "agg@1", "agg@3"}
    assert {record.part for record in results.records if record.task == "leakage_position"} == {"all@1", "agg@1"}
    assert results.notes == (
        "classification: M = 4 is left out, because sequences have 3 views",
        "leakage: M = 3 is left out, because sequences have 3 views",
        "path_integration: M = 3, 4 is left out, because sequences have 3 views",
    )


def test_augmentations_are_asked_for_by_kind_and_not_composed():
    names = tuple(action_columns("seq_jepa_raw", ("crop", "jitter", "blur")))
    generator = torch.Generator().manual_seed(0)
    train, test = [
        FeatureSequences(
            torch.randn(40, 4, 8, generator=generator),
            torch.randn(40, 4, 4, 9, generator=generator),
            torch.arange(40) % NUM_CLASSES,
            torch.arange(40),
            names,
        )
        for _ in range(2)
    ]
    results = ask(Mean(), "pair_action", "path_integration", lengths=(1, 2), train=train, test=test)
    assert {record.task for record in results.records} == {"pair_crop", "pair_jitter", "pair_blur"}
    assert results.notes == ("path_integration is left out: only steps of latents and positions compose",)
    standard = tuple(action_columns("standard", ("crop", "horizontal_flip", "jitter", "grayscale", "blur", "solarize")))
    found = {target.name: (target.head, target.columns) for target in augmentation_targets(standard)}
    assert found == {
        "crop": ("mlp", (0, 1, 2, 3)), "jitter": ("mlp", (5, 6, 7, 8)), "blur": ("linear", (10,)),
    }  # fmt: skip


def test_rotations_are_read_from_pairs_of_views():
    train, test = [
        sequences_of_cache(poses(count, seed), ["rotation"], 6, 1, seed=0) for count, seed in ((300, 0), (60, 1))
    ]
    heads = ProbeProtocol(rotation_epochs=20, rotation_hidden=(64,), learning_rate=5e-3)
    protocol = SequenceProtocol(questions=("pair_action",), heads=heads)
    values = table(probe_sequences(Mean(), train, test, NUM_CLASSES, protocol).records)
    assert values["pair_rotation", "all", "r2_uniform"] > 0.6
    assert values["pair_rotation", "all", "angle_deg_median"] < 60


def test_quick_records_are_the_same_twice_and_leave_the_model_as_it_was():
    model = small_seq_jepa()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = (poses(20, 0, num_views=8), poses(10, 1, num_views=8), ["rotation"], NUM_CLASSES)
    first = quick_sequence_results(model, *arguments, split_name="val")
    assert quick_sequence_results(model, *arguments, split_name="val") == first
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    parts = {record.part for record in first.records if record.task == "classification"}
    assert parts == {"all@1", *(f"agg@{length}" for length in QUICK.lengths)}
    assert {record.part for record in first.records if record.task == "leakage_rotation"} == {
        "all@1",
        "agg@1",
        "all@3",
        "agg@3",
    }


@pytest.mark.parametrize("conditioning", ["none", "predictor"])
def test_quick_records_of_a_model_that_aggregates_without_actions(conditioning: str):
    records = quick_sequence_results(
        small_seq_jepa(conditioning=conditioning), poses(12, 0), poses(6, 1), ["rotation"], NUM_CLASSES
    ).records
    assert all(np.isfinite(record.value) for record in records)
    assert {record.part for record in records if record.task == "classification"} >= {"all@1", "agg@1", "agg@5"}


def test_sets_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="make both alike"):
        ask(Mean(), "classification", test=positions(10, length=4))
    unlabelled = positions(10)
    unlabelled.labels[:3] = -1
    with pytest.raises(ValueError, match="3 sequences have no label"):
        ask(Mean(), "classification", test=unlabelled)
    with pytest.raises(ValueError, match="actions have 2 columns"):
        ask(small_seq_jepa(action_dim=4), "classification")


def test_aggregates_that_are_not_finite_are_refused():
    class Diverged(Mean):
        def aggregate(self, features: Tensor, actions: Tensor | None) -> Tensor:
            return features.mean(dim=1) / 0

    with pytest.raises(RuntimeError, match="aggregates are not finite"):
        ask(Diverged(), "classification")
