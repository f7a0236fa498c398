"""Classes by linear heads, neighbours and few objects: ceilings, floors, and what scikit-learn says."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import (
    HeadPlan,
    HeadRequest,
    Samples,
    train_heads,
)
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import TASKS, Ask
from ssl_equi.evaluation.tasks.classification import few_objects, nearest_rows
from tests.fakes import feature_cache

NAMES = ("classification", "linear", "knn", "knn_weighted", "low_shot_1pct", "low_shot_10pct")
QUICK = replace(
    ProbeProtocol(), linear_epochs=5, linear_learning_rates=(1e-4, 3e-2), low_shot_steps=60, classification_epochs=5,
    learning_rate=3e-2, knn_weighted_neighbours=50,
)  # fmt: skip
MakeCache = Callable[..., FeatureCache]


def with_class(cache: FeatureCache, noise: float, seed: int = 0, width: int = 4) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    features = noise * torch.randn(*cache.features.shape[:2], width, generator=generator)
    features[..., :4] += F.one_hot(cache.labels, 4)[:, None]
    return replace(cache, features=features)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_show_the_class_reach_the_ceiling(posed_cache: MakeCache, name: str) -> None:
    train, test = with_class(posed_cache(400, 0, num_views=3), 0.05), with_class(posed_cache(40, 1), 0.05, seed=1)
    result = TASKS[name](Ask(train, test, 4, QUICK, 0))
    assert result.metrics == {"top1": 1.0, "balanced_top1": 1.0}
    assert {key: baseline.value for key, baseline in result.baselines.items()} == {"top1": 0.25, "balanced_top1": 0.25}
    assert result.num_samples == 320 and result.per_class_recall.tolist() == [1.0] * 4
    assert result.object_scores["top1"].tolist() == [1.0] * 40


@pytest.mark.parametrize("name", NAMES)
def test_random_features_reach_chance(posed_cache: MakeCache, name: str) -> None:
    """800 views of 100 objects, 4 classes: three standard errors of the chance level are .046."""
    noise = [
        replace(cache, features=torch.randn(*cache.features.shape[:2], 6, generator=torch.Generator().manual_seed(9)))
        for cache in (posed_cache(400, 0, num_views=3), posed_cache(100, 1))
    ]
    result = TASKS[name](Ask(*noise, 4, QUICK, 0))
    assert result.metrics["top1"] == pytest.approx(0.25, abs=0.05)
    assert result.object_scores["top1"].mean() == pytest.approx(result.metrics["top1"])


@pytest.mark.parametrize("name", NAMES)
def test_classes_that_training_never_saw_are_left_out_with_a_note(posed_cache: MakeCache, name: str) -> None:
    train, test = with_class(posed_cache(400, 0, num_views=3), 0.05), with_class(posed_cache(40, 1), 0.05, seed=1)
    seen = train.objects((train.labels != 2).nonzero()[:, 0])
    result = TASKS[name](Ask(seen, test, 4, QUICK, 0))
    assert result.metrics == {"top1": 1.0, "balanced_top1": 1.0}
    assert (result.num_samples, result.num_objects) == (240, 30)
    assert np.isnan(result.per_class_recall).tolist() == [False, False, True, False]
    assert np.isnan(result.object_scores["top1"]).sum() == 10
    assert result.notes[0] == (
        "80 of 320 evaluated views are of 1 classes that no training object has (numbers 2), and are left out"
    )
    others = test.objects((test.labels == 2).nonzero()[:, 0])
    with pytest.raises(
        TaskSkipped, match=r"all 80 evaluated views are of 1 classes .*: use splits of the same classes"
    ):
        TASKS[name](Ask(seen, others, 4, QUICK, 0))


def test_objects_that_are_classes_choose_strengths_on_held_out_views() -> None:
    """Twelve objects, each a class: with held-out objects all candidates score 0, and the weakest rate is chosen."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 1, 6, generator=generator)
    train, test = (
        feature_cache(
            features=centres + 0.2 * torch.randn(12, views, 6, generator=generator), labels=torch.arange(12),
            latents=torch.zeros(12, views, 0), quats_xyzw=None,
        )
        for views in (20, 5)
    )  # fmt: skip
    result = TASKS["linear"](Ask(train, test, 12, replace(QUICK, linear_epochs=30), 0))
    assert result.details["learning_rate"] == 3e-2 and result.metrics["top1"] > 0.6
    assert result.notes == (
        "learning rate and weight decay were chosen on held-out views, since held-out objects are of other classes",
    )


def test_a_linear_head_with_weight_decay_becomes_scikit_learns_logistic_regression() -> None:
    """Adam's weight decay w is the gradient of w / 2 |W|^2: C = 1 / (n w). The bias, penalised here, is small."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    features = torch.randn(240, 5, generator=generator) + F.one_hot(labels, 5)
    features = (features - features.mean(0)) / features.std(0)
    protocol = replace(ProbeProtocol(), batch_size=240)
    samples = Samples(torch.arange(240)[:, None], labels)
    plan = HeadPlan((), epochs=200, classes=3)
    request = HeadRequest(features, lambda epoch: samples, plan, 0, learning_rate=3e-2, weight_decay=1e-2)
    (head,) = train_heads([request], protocol)
    reference = LogisticRegression(C=1 / (240 * 1e-2)).fit(features.numpy(), labels.numpy())
    found = F.softmax(head(features), dim=1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(features.numpy()), atol=5e-3)


def test_the_sweep_chooses_by_training_objects_alone(posed_cache: MakeCache) -> None:
    """Test labels are shuffled: neither the choice nor the head may notice."""
    train, test = with_class(posed_cache(60, 0), 0.3), with_class(posed_cache(40, 1), 0.3, seed=1)
    result = TASKS["linear"](Ask(train, test, 4, QUICK, 0))
    assert result.details["learning_rate"] == 3e-2, "five epochs at 1e-4 learn next to nothing"
    shuffled = replace(test, labels=(test.labels + 1) % 4)
    again = TASKS["linear"](Ask(train, shuffled, 4, QUICK, 0))
    assert again.details == result.details and again.metrics["top1"] < 0.25 < 0.7 < result.metrics["top1"]
    alone = replace(QUICK, learning_rate=3e-2, weight_decay=result.details["weight_decay"])
    assert result.metrics == TASKS["classification"](Ask(train, test, 4, alone, 0)).metrics, "refitted on all objects"


@pytest.mark.parametrize(("name", "weights"), [("knn", "uniform"), ("knn_weighted", "temperature")])
def test_neighbours_vote_as_in_scikit_learn(posed_cache: MakeCache, name: str, weights: str) -> None:
    train, test = with_class(posed_cache(30, 0), 0.7), with_class(posed_cache(20, 1), 0.7, seed=1)
    protocol = replace(QUICK, knn_neighbours=15, knn_weighted_neighbours=15)

    def by_temperature(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / protocol.knn_temperature)

    reference = KNeighborsClassifier(
        15, metric="cosine", algorithm="brute", weights="uniform" if weights == "uniform" else by_temperature
    ).fit(train.features.flatten(0, 1).double(), train.labels.repeat_interleave(8))
    predicted = reference.predict(test.features.flatten(0, 1).double())
    result = TASKS[name](Ask(train, test, 4, protocol, 0))
    expected = (predicted.reshape(20, 8) == test.labels[:, None].numpy()).mean(axis=1)
    np.testing.assert_allclose(result.object_scores["top1"], expected)
    assert 0.4 < result.metrics["top1"] < 0.95


def test_neighbours_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (33, 70))
    expected = (F.normalize(queries) @ F.normalize(bank).T).topk(9, dim=1)
    monkeypatch.setattr("ssl_equi.evaluation.tasks.classification.BANK_ROWS", 8)  # less than the neighbours asked for
    monkeypatch.setattr("ssl_equi.evaluation.tasks.classification.QUERY_ROWS", 10)
    similarities, indices = nearest_rows(queries, bank, 9)
    torch.testing.assert_close(similarities, expected.values)
    assert torch.equal(indices, expected.indices)


def test_few_objects_are_balanced_and_follow_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [300, 90, 10])
    chosen = few_objects(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [13, 13, 10], "400 / 10 / 3 of each, or all there are"
    np.testing.assert_array_equal(chosen, few_objects(labels, 0.1, seed=0))
    assert not np.array_equal(chosen, few_objects(labels, 0.1, seed=1))
    assert np.bincount(labels[few_objects(labels, 0.01, seed=0)]).tolist() == [1, 1, 1]
    just_enough = np.arange(30) % 3
    assert len(few_objects(just_enough, 0.1, seed=0)) == 3
    with pytest.raises(TaskSkipped, match=r"10% of the 29 training objects is less than one .* use 30 objects"):
        few_objects(just_enough[:29], 0.1, seed=0)


def test_few_objects_are_all_that_the_head_learns_from(posed_cache: MakeCache) -> None:
    """The features of all other training objects show a wrong class."""
    train, test = with_class(posed_cache(400, 0, num_views=2), 0.02), with_class(posed_cache(40, 1), 0.02)
    others = np.setdiff1d(np.arange(400), few_objects(train.labels.numpy(), 0.01, seed=3))
    train.features[others] = train.features[others].roll(1, dims=-1)
    result = TASKS["low_shot_1pct"](Ask(train, test, 4, QUICK, 3))
    assert result.metrics["top1"] == 1.0 and result.details == {"training_objects": 4}


def nan_features(cache: FeatureCache) -> FeatureCache:
    features = cache.features.clone()
    features[3, 1, 0] = float("nan")
    return replace(cache, features=features)


SKIPPED: list[tuple[str, Callable[[FeatureCache], FeatureCache], Callable[[FeatureCache], FeatureCache], str]] = [
    ("knn", lambda train: replace(train, features=train.features[:2], labels=train.labels[:2]), lambda test: test,
     "20 neighbours can't be found among 16 training views"),
    ("knn_weighted", lambda train: replace(train, features=train.features[:5], labels=train.labels[:5]),
     lambda test: test, "50 neighbours can't be found among 40 training views"),
    ("low_shot_1pct", lambda train: train, lambda test: test,
     "1% of the 40 training objects is less than one for each of 4 classes: use 400 objects or more"),
    *[(name, lambda train: replace(train, labels=torch.full_like(train.labels, 2)), lambda test: test,
       "all 40 training objects are of class 2") for name in NAMES],
    *[(name, lambda train: nan_features(train), lambda test: test,
       "features of 1 of 320 views are not finite") for name in NAMES],
    *[(name, lambda train: train, lambda test: nan_features(test),
       "features of 1 of 160 views are not finite") for name in NAMES],
    *[(name, lambda train: replace(train, features=torch.zeros(40, 8, 4)), lambda test: test,
       "all 320 training views have the same 4 features: this part is empty") for name in NAMES],
    *[(name, lambda train: replace(train, features=torch.full((40, 8, 4), 0.3)), lambda test: test,
       "all 320 training views have the same 4 features") for name in NAMES],
]  # fmt: skip


@pytest.mark.parametrize(("name", "of_train", "of_test", "message"), SKIPPED)
def test_what_cannot_be_asked_is_skipped_with_a_reason(
    posed_cache: MakeCache,
    name: str,
    of_train: Callable[[FeatureCache], FeatureCache],
    of_test: Callable[[FeatureCache], FeatureCache],
    message: str,
) -> None:
    train, test = with_class(posed_cache(40, 0), 0.1), with_class(posed_cache(20, 1), 0.1)
    with pytest.raises(TaskSkipped, match=message):
        TASKS[name](Ask(of_train(train), of_test(test), 4, QUICK, 0))
