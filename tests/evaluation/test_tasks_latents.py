"""Tasks of any latent: ceilings, floors, constants in closed form, classes, what is skipped, a kind of one's own."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import qmc
from torch import Tensor

from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.metrics import class_of_metric, lower_is_better
from ssl_equi.evaluation.protocol import CORE_TASKS, ProbeProtocol
from ssl_equi.evaluation.report.tables import meaning_of_task
from ssl_equi.evaluation.results import records_of
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.suite import ask_features, own_latent_tasks, tasks_for
from ssl_equi.evaluation.tables import describe_columns, in_short_tables
from ssl_equi.evaluation.task import TASKS, Ask, TaskResult
from ssl_equi.latents.angle import Angle
from ssl_equi.latents.category import Category
from ssl_equi.latents.direction import Direction
from ssl_equi.latents.kind import Displacements, LatentKind, Sizes
from ssl_equi.latents.number import Number
from ssl_equi.latents.rotation import Rotation
from ssl_equi.latents.schema import KINDS, THREEDIEBENCH, THREEDIEBENCH_T, Latent, LatentSchema
from ssl_equi.latents.translation import Translation
from tests.evaluation.report_pages import results_of

ROBOT: dict[str, LatentKind] = {
    "base": Rotation("quat_xyzw"),
    "hand": Rotation(unit="deg", ranges=((-80, 80),) * 3),  # two rotations: neither is the pose
    "azimuth": Angle(),
    "elevation": Number((0, 90), "deg"),
    "place": Translation(((-2000, 2000), (5000, 9000))),  # millimetres
    "lamp": Direction(),
    "tool": Category(("none", "grip", "drill")),
}
SHORT = ProbeProtocol(
    batch_size=64, learning_rate=6e-3, rotation_hidden=(64,), rotation_epochs=12, absolute_rotation_hidden=(48,),
    absolute_rotation_epochs=10,
)  # fmt: skip
UNTRAINED = replace(
    SHORT, rotation_epochs=0, rotation_hidden=(), absolute_rotation_epochs=0, absolute_rotation_hidden=(),
    bootstrap_resamples=0,
)  # fmt: skip


def schema_of(kinds: dict[str, LatentKind]) -> LatentSchema:
    latents, start = [], 0
    for name, kind in kinds.items():
        latents.append(Latent(name, kind, start))
        start += kind.sizes.columns
    return LatentSchema(tuple(latents))


def cache_of(schema: LatentSchema, latents: Tensor, class_names: tuple[str, ...] = ("a", "b", "c")) -> FeatureCache:
    """Views with these latents [n, V, L]; the features say what each kind encodes of its value."""
    features = []
    for latent in schema.latents:
        encoded = latent.kind.encode(latents[..., latent.columns])
        is_class = latent.kind.targets_are_classes
        features.append(F.one_hot(encoded, latent.kind.sizes.targets).float() if is_class else encoded)
        if isinstance(latent.kind, Rotation):  # a quaternion jumps where w is 0
            quats = latent.kind.quats(latents[..., latent.columns])
            features[-1] = (quats[..., :, None] * quats[..., None, :]).flatten(-2).float()
    spread = torch.cat([(each - each.mean((0, 1))) / each.std().clamp(min=1e-9) for each in features], dim=-1)
    labels = torch.arange(len(latents)) % len(class_names)
    quats_xyzw = schema.quats_xyzw(latents)
    quats_xyzw = None if quats_xyzw is None else quats_xyzw.float()
    return FeatureCache(spread, labels, latents.float(), quats_xyzw, class_names, schema)


def sampled(schema: LatentSchema, num_objects: int, seed: int, num_views: int = 8) -> FeatureCache:
    values = schema.sample(np.random.default_rng(seed), num_objects * num_views)
    return cache_of(schema, values.unflatten(0, (num_objects, num_views)))


def noise(cache: FeatureCache, seed: int) -> FeatureCache:
    generator = torch.Generator().manual_seed(seed)
    return replace(cache, features=torch.randn(*cache.features.shape[:2], 4, generator=generator))


def ask(train: FeatureCache, test: FeatureCache, name: str, protocol: ProbeProtocol = SHORT) -> TaskResult:
    return (TASKS | own_latent_tasks(test.schema))[name](Ask(train, test, 3, protocol, 0))


EVERY_TASK = pytest.mark.parametrize("name", own_latent_tasks(schema_of(ROBOT)))


# ---------------------------------------------------------------- which tasks there are


def test_every_latent_has_its_tasks_and_those_of_3diebench_have_them_already() -> None:
    schema = schema_of(ROBOT)
    cache = sampled(schema, 2, 0)
    changes = [f"{change}_{name}" for name in ROBOT for change in ("relative", "absolute")]
    changes.remove("relative_tool")
    assert list(own_latent_tasks(schema)) == changes
    assert tasks_for(cache) == ("classification", *changes)
    assert own_latent_tasks(schema).keys() >= set(changes)
    for known in (THREEDIEBENCH, THREEDIEBENCH_T, None):
        assert own_latent_tasks(known) == {}


def test_rotations_are_asked_of_any_pose_and_light_of_any_direction_of_that_name() -> None:
    schema = schema_of({"azimuth": Angle(), "camera": Rotation("matrix"), "light": Direction("xyz")})
    assert list(own_latent_tasks(schema)) == ["relative_azimuth", "absolute_azimuth"]
    asked = ("classification", "relative_rotation", "absolute_rotation", "relative_azimuth", "absolute_azimuth")
    train, test = sampled(schema, 12, 0), sampled(schema, 6, 1)
    assert tasks_for(test) == asked
    for name in (*asked[1:], "light", "relative_light", "feature_action"):
        result = ask(train, test, name, replace(UNTRAINED, light_epochs=1, light_hidden=()))
        assert result.metrics and result.baselines.keys() == result.metrics.keys(), name
    # A latent of another kind that has the name of a task is asked by its own kind.
    dimmed = schema_of({"light": Number((0, 1))})
    assert tasks_for(sampled(dimmed, 2, 0), ("light", "relative_light")) == ("relative_light", "absolute_light")
    assert "relative_light" in own_latent_tasks(dimmed)


def test_translations_of_a_motion_are_asked_in_two_frames_and_others_by_themselves() -> None:
    content = schema_of({"turn": Rotation(), "shift": Translation(((0, 1),) * 3), "cart": Translation(((0, 1),))})
    motion = {"name": "motion", "rotation": "turn", "translation": "shift", "frame": "base"}
    schema = LatentSchema.from_json(content.as_json() | {"motions": [motion]})
    assert list(own_latent_tasks(schema)) == ["relative_cart", "absolute_cart"]
    train, test = sampled(schema, 3, 0), sampled(schema, 3, 1)
    assert tasks_for(test, CORE_TASKS)[:5] == CORE_TASKS[:5]
    latents = torch.cat([test.latents[..., :3], torch.zeros(3, 8, 4), test.latents[..., 3:6]], dim=-1)
    moving = FeatureCache(test.features, test.labels, latents, test.quats_xyzw, schema=THREEDIEBENCH_T)
    for name in ("translation_object", "translation_base"):
        of_schema, of_columns = (ask(train, cache, name, UNTRAINED).baselines for cache in (test, moving))
        assert of_schema["distance_median"].value == pytest.approx(of_columns["distance_median"].value, abs=1e-6)


# ---------------------------------------------------------------- ceilings, floors, constants


@EVERY_TASK
def test_features_that_are_the_latents_reach_the_ceiling(name: str) -> None:
    schema = schema_of({name.split("_")[1]: ROBOT[name.split("_")[1]]})
    if schema.pose is not None:  # so that it isn't the pose
        schema = schema_of({"hand": ROBOT["hand"], "base": ROBOT["base"]})
    result = ask(sampled(schema, 80, 0), sampled(schema, 20, 1), name)
    kind = ROBOT[name.split("_")[1]]
    assert result.metrics.keys() == result.baselines.keys()
    if kind.targets_are_classes:
        assert result.metrics["top1"] > 0.99
        return
    least = 0.3 if isinstance(kind, Rotation) else 0.8
    assert result.metrics["r2_uniform"] > least
    assert (
        result.metrics[kind.metric] < (0.8 if isinstance(kind, Rotation) else 0.5) * result.baselines[kind.metric].value
    )
    assert result.baselines["r2_uniform"].value == pytest.approx(0, abs=1e-6)
    (mean,) = result.object_scores
    assert np.mean(result.object_scores[mean]) == pytest.approx(result.metrics[mean])


def test_noise_stays_at_the_floor() -> None:
    schema = schema_of(ROBOT)
    train, test = noise(sampled(schema, 120, 0), 0), noise(sampled(schema, 60, 1), 1)
    protocol = replace(UNTRAINED, rotation_epochs=2, absolute_rotation_epochs=4, learning_rate=3e-2)
    results, notes = ask_features(train, test, {"all": slice(None)}, own_latent_tasks(schema), 3, protocol)
    assert results["all"].keys() == own_latent_tasks(schema).keys() and notes == []
    for name, result in results["all"].items():
        metric = ROBOT[name.split("_")[1]].metric
        assert result.metrics.get("r2_uniform", 0) == pytest.approx(-0.02, abs=0.05), name
        assert result.metrics[metric] == pytest.approx(result.baselines[metric].value, rel=0.25), name


CONSTANTS: dict[str, tuple[LatentKind, float | None]] = {
    # A kind, and the score of the best constant change between two values, where a closed form is at hand.
    "azimuth": (Angle(), 90),
    "half turns": (Angle("rad", period=math.pi), 45),
    "elevation": (Number((0, 90), "deg"), 90 * (1 - math.sqrt(0.5))),  # |a - b| has the distribution 1 - (1 - x)^2
    "line": (Translation(((-1, 2),)), 3 * (1 - math.sqrt(0.5))),
    "plane": (Translation(((0, 2), (0, 2))), None),
    "lamp": (Direction("xyz"), 90),
    "rotation": (Rotation("quat_xyzw"), 132.3465),
    "shape": (Category(("cube", "ball", "cone", "ring")), None),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_best_constant_is_that_of_the_closed_form(name: str) -> None:
    kind, of_change = CONSTANTS[name]
    kinds = {"asked": kind} | ({"other": kind} if isinstance(kind, Rotation) else {})
    schema = schema_of(kinds)
    uniform = torch.from_numpy(qmc.Sobol(kind.sizes.columns, seed=0).random_base2(15))
    values = torch.cat([kind.from_uniform(uniform)] * len(kinds), dim=1).unflatten(0, (64, 512))
    cache = noise(cache_of(schema, values), 0)
    absolute = ask(cache, cache, "absolute_asked", UNTRAINED).baselines[kind.metric]
    assert absolute.value == pytest.approx(kind.constant_score(), rel=1e-3)
    assert absolute.name == ("majority class" if kind.metric == "top1" else "constant")
    if of_change is not None:
        # All pairs of views of one object, whose values fill the range evenly.
        every_pair = replace(UNTRAINED, evaluation_least_pairs=10**9, evaluation_most_pairs=10**9)
        few = cache.objects(slice(0, 1))
        assert ask(few, few, "relative_asked", every_pair).baselines[kind.metric].value == pytest.approx(
            of_change, rel=5e-3
        )


def test_an_angles_constant_is_the_mean_direction_and_errors_go_the_short_way() -> None:
    schema = schema_of({"azimuth": Angle()})
    azimuths = torch.tensor([[350.0, 355, 5, 10, 20]])[..., None]
    cache = noise(cache_of(schema, azimuths.expand(3, 5, 1)), 0)
    result = ask(cache, cache, "absolute_azimuth", UNTRAINED)
    mean = math.degrees(np.angle(np.exp(1j * np.radians([350, 355, 5, 10, 20])).sum()))
    errors = [abs((azimuth - mean + 180) % 360 - 180) for azimuth in (350, 355, 5, 10, 20)]
    assert result.baselines["angle_deg_median"].value == pytest.approx(np.median(errors), abs=1e-4)
    assert result.baselines["angle_deg_mean"].value == pytest.approx(np.mean(errors), abs=1e-4)


def test_the_unit_of_a_latent_changes_no_head() -> None:
    """Metres or millimetres: the same R2, and a thousand times the distance."""
    found = []
    for size in (1.0, 1000.0):
        schema = schema_of({"place": Translation(((-size, size),) * 3)})
        train, test = sampled(schema, 40, 0), sampled(schema, 10, 1)
        found.append(ask(train, test, "relative_place", replace(SHORT, rotation_epochs=2)).metrics)
    assert found[0]["r2_uniform"] == pytest.approx(found[1]["r2_uniform"], abs=1e-3)
    assert 1000 * found[0]["distance_median"] == pytest.approx(found[1]["distance_median"], rel=1e-2)


# ---------------------------------------------------------------- classes, statistics, records


def test_symmetric_classes_are_told_apart() -> None:
    """An apple looks the same from all sides: its azimuth is in no feature, and only its class says so."""
    schema = schema_of({"azimuth": Angle(), "tool": ROBOT["tool"]})
    train, test = (replace(sampled(schema, 60, seed), class_names=("apple", "tea pot", "car")) for seed in (0, 1))
    for cache in (train, test):
        cache.features[cache.labels == 0, :, :2] = 0
    results, _ = ask_features(
        train, test, {"all": slice(None)}, own_latent_tasks(schema), 3, replace(SHORT, bootstrap_resamples=100)
    )
    for task in ("relative_azimuth", "absolute_azimuth"):
        metrics = results["all"][task].metrics
        assert metrics["angle_deg_median_of_apple"] > 75
        assert metrics["angle_deg_median_of_tea_pot"] < 20 and metrics["angle_deg_median_of_car"] < 20
    assert results["all"]["absolute_tool"].metrics["top1_of_apple"] > 0.99
    records = records_of(results, None, split="test", protocol=SHORT, seed=0, num_objects=60)
    by_name = {(record.task, record.metric): record for record in records}
    assert all(record.interval_low <= record.value <= record.interval_high for record in records)
    assert by_name["relative_azimuth", "angle_deg_mean"].object_standard_error > 0
    assert by_name["absolute_tool", "top1"].object_standard_error is not None
    assert {record.metric for record in in_short_tables(records)} == {
        "r2_uniform", "angle_deg_median", "angle_deg_mean", "top1",
    }  # fmt: skip
    assert class_of_metric("angle_deg_median_of_tea_pot") == ("angle_deg_median", "tea_pot")
    assert class_of_metric("angle_deg_median_floor_hue") is None and class_of_metric("top1") is None
    page = results_of(records)
    assert "relative_azimuth: median angle by class" in page and "absolute_tool: top1 by class" in page
    assert "how the latent azimuth changes between two views" in page
    assert "angle_deg_median_of_CLASS" in " ".join(describe_columns(records))
    assert meaning_of_task("absolute_tool").startswith("the latent tool in a single view")


def test_what_does_not_vary_is_skipped_with_a_sentence() -> None:
    schema = schema_of({"hue": Angle("turn"), "size": Number((0, 1)), "shape": Category(("cube", "ball"))})
    train, test = sampled(schema, 20, 0), sampled(schema, 10, 1)
    test.latents[..., 0] = 0.0
    test.latents[..., 1] = test.latents[:, :1, 1]
    test.latents[..., 2] = 1
    protocol = replace(SHORT, rotation_epochs=1, absolute_rotation_epochs=1)
    results, notes = ask_features(train, test, {"all": slice(None)}, own_latent_tasks(schema), 3, protocol)
    assert list(results["all"]) == ["absolute_size"]
    assert notes == [
        "relative_hue, part all: latent 'hue' changes alike in all 560 evaluated pairs of views, if at all: use data "
        "in which it changes between views",
        "absolute_hue, part all: latent 'hue' is the same in all 80 evaluated views: use data in which it varies",
        "relative_size, part all: latent 'size' changes alike in all 560 evaluated pairs of views, if at all: use data "
        "in which it changes between views",
        "absolute_shape, part all: latent 'shape' is the same in all 80 evaluated views: use data in which it varies",
    ]


@EVERY_TASK
def test_what_cannot_be_asked_is_skipped_with_a_reason(name: str) -> None:
    cache = sampled(schema_of(ROBOT), 4, 0)
    with pytest.raises(TaskSkipped, match="this part is empty or has collapsed"):
        ask(replace(cache, features=torch.zeros_like(cache.features)), cache, name, UNTRAINED)
    if name.startswith("relative"):
        single = replace(cache, features=cache.features[:, :1], latents=cache.latents[:, :1])
        with pytest.raises(TaskSkipped, match="objects have 1 view and a pair takes 2"):
            ask(cache, single, name, UNTRAINED)


# ---------------------------------------------------------------- a kind of one's own


@dataclass(frozen=True)
class Octaves(Displacements):
    """A frequency: what counts is its logarithm."""

    kind = "octaves"
    metric = "octaves_median"
    sizes = Sizes(1, 1, 1)

    def vectors(self, values: Tensor) -> Tensor:
        return values.log2().float()

    def from_vectors(self, vectors: Tensor) -> Tensor:
        return vectors.double().exp2()

    def errors(self, answers: Tensor, values: Tensor) -> Tensor:
        return (answers.double().log2() - values.double().log2()).abs().squeeze(-1)

    def constant_score(self) -> float | None:
        return 1.0

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return (4 * uniform).exp2()


def test_a_kind_of_ones_own_has_its_tasks_and_its_place_in_records(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = schema_of({"pitch": Octaves()})
    train, test = sampled(schema, 60, 0), sampled(schema, 20, 1)
    assert tasks_for(test) == ("classification", "relative_pitch", "absolute_pitch")
    assert not lower_is_better("octaves_median")
    monkeypatch.setitem(KINDS, "octaves", Octaves)
    assert lower_is_better("octaves_median") and lower_is_better("octaves_mean")
    results, notes = ask_features(train, test, {"all": slice(None)}, own_latent_tasks(schema), 3, SHORT)
    for name in ("relative_pitch", "absolute_pitch"):
        result = results["all"][name]
        assert result.metrics["r2_uniform"] > 0.95 and result.metrics["octaves_median"] < 0.3
    assert results["all"]["absolute_pitch"].baselines["octaves_median"].value == pytest.approx(1, abs=0.1)
    records = records_of(results, None, split="test", protocol=SHORT, seed=0, num_objects=20)
    assert {record.metric for record in in_short_tables(records)} == {"r2_uniform", "octaves_median", "octaves_mean"}
    assert "relative_pitch: octaves_median by class" in results_of(records, notes)
