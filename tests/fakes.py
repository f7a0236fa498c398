"""Small stand-ins that tests share: encoders, data and what a run offers."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ssl_equi.evaluation.tasks  # noqa: F401  (registers all tasks)
from ssl_equi.cli import explain_errors
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.results import ProbeRecord
from ssl_equi.evaluation.task import TASKS
from ssl_equi.geometry.rotations import quat_multiply, quat_positive, random_quat
from ssl_equi.latents.actions import ToldActions
from ssl_equi.latents.schema import SCHEMA_OF_WIDTH, LatentSchema
from ssl_equi.views.options import ViewOptions

# What imports timm or Accelerate takes seconds, and most tests that share this file need neither.
if TYPE_CHECKING:
    from ssl_equi.encoders.capsules.network import CapsuleNetwork
    from ssl_equi.evaluation.features import FeatureCache
    from ssl_equi.training.pretraining import Pretraining

# ---------------------------------------------------------------- encoders

NEEDS_TRANSLATIONS = ("translation_object", "translation_base")  # tasks that are asked where objects move
OF_FEATURES = [name for name, task in TASKS.items() if task.group == "features"]  # tasks without further images
RECORD = ProbeRecord(
    task="relative_rotation",
    part="equi",
    metric="angle_deg_median",
    value=23.456,
    baseline=110.2,
    baseline_name="constant",
    random_encoder=98.7,
    n=1920,
    num_objects=192,
    split="test",
    protocol="ssl_equi_v1",
    seed=0,
)


class PixelEncoder(nn.Module):
    """The features are the pixels: 12 of a 2 x 2 RGB image."""

    def __init__(self, num_features: int = 12) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.num_features]


class LinearEncoder(nn.Module):
    """One linear layer of the pixels."""

    def __init__(self, num_features: int = 16, pixels: int = 12) -> None:
        super().__init__()
        self.num_features = num_features
        self.linear = nn.Linear(pixels, num_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


class BatchNormEncoder(nn.Module):
    """Two linear layers of the pixels with a batch norm between them."""

    def __init__(self, num_features: int = 16, pixels: int = 12) -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_features)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ConvolutionEncoder(nn.Module):
    """Convolutions with both kinds of batch norm, for images of 5 pixels and more, and one without scale at the end."""

    def __init__(self, num_features: int = 16) -> None:
        from timm.layers import BatchNormAct2d

        super().__init__()
        self.num_features = num_features
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, bias=False),
            BatchNormAct2d(12, act_layer=nn.GELU),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, num_features),
            nn.BatchNorm1d(num_features, affine=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class StridedEncoder(nn.Module):
    """Convolutions without any symmetry, for images of 17 to 20 pixels: strides on even sides, an unpooled grid."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(100, self.num_features),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class MapEncoder(nn.Module):
    """A map of 2 x 2 places for images of 8 x 8 pixels, with batch norm, and its mean."""

    def __init__(self, num_features: int = 8) -> None:
        super().__init__()
        self.num_features = num_features
        self.map = nn.Sequential(
            nn.Conv2d(3, num_features, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(num_features), nn.ReLU()
        )

    def forward_features(self, images: Tensor) -> Tensor:
        return self.map(images)

    def forward_head(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class ExtraState(nn.Linear):
    """Has a state that is no tensor, which safetensors can't hold."""

    num_features = 5

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def capsule_network(pose_side: int, num_capsules: int = 5, votes: str = "free") -> "CapsuleNetwork":
    """For images of 8 x 8 pixels; its routing depends on the image from the first step on."""
    from ssl_equi.encoders.capsules.network import CapsuleNetwork

    network = CapsuleNetwork(MapEncoder(), 8, num_capsules, pose_side, votes)
    with torch.no_grad():
        network.head.routing.routing_weight.normal_()
    return network


def recorded_calls(module: nn.Module) -> list[tuple[int, ...]]:
    """Grows by the shape of the first input at every call of the module."""
    calls: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    return calls


Module = TypeVar("Module", bound=nn.Module)


def with_other_values(module: Module, seed: int = 0) -> Module:
    """The module in eval mode, with values that no initialisation has; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.add_(noise if "running_var" in name else 0.1 * (noise - 0.5))
    return module.eval()


def export_small_encoder(folder: Path, architecture: str = "strided_cnn_nano", **arguments: Any) -> Module:
    """Exports an encoder for images of 32 x 32 pixels into a folder, as a run of SIE would, and returns it."""
    from ssl_equi.encoders import create_encoder
    from ssl_equi.encoders.catalogue import model_arguments
    from ssl_equi.export.encoder import EncoderCard, save_encoder

    encoder = with_other_values(create_encoder(architecture, 32, **arguments))
    width = int(encoder.num_features)
    card = EncoderCard(
        architecture=architecture, model_args=model_arguments(architecture, 32, arguments), image_size=32,
        mean_rgb=(0.41, 0.42, 0.43), std_rgb=(0.11, 0.12, 0.13),
        parts={"all": (0, width), "inv": (0, width // 2), "equi": (width // 2, width)},
        objective="sie", trained_on="3diebench-p 0123456789abcdef", license="apache-2.0", tag="sie_3diebench_p",
    )  # fmt: skip
    save_encoder(encoder, folder, card)
    return encoder


# ---------------------------------------------------------------- objectives


def random_pairs(
    size: int, action_dim: int = 4, side: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Views [size, 2, 3, side, side] and actions [size, action_dim] of length 1, the same for the same size."""
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, side, side, generator=generator, dtype=dtype)
    actions = torch.randn(size, action_dim, generator=generator, dtype=dtype)
    return views, nn.functional.normalize(actions, dim=1)


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Processes:
    """One process of a run, by itself unless said otherwise."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, message: str) -> None:
        print(message)


@dataclass(frozen=True)
class ViewsConfig:
    """The options that making views depends on."""

    views: ViewOptions = field(default_factory=ViewOptions)
    image_size: int = 32
    batch_size: int = 8
    seed: int = 0
    compile: bool = False
    dataset: str = "3diebench-p"
    told: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Split(ViewCollection):
    """What a data source tells of its training views without reading one: 24 objects seen from 4 sides.

    The schema, if none is given, is that of 3DIEBench or 3DIEBench-T where there are as many columns.
    """

    latents: np.ndarray = field(default_factory=lambda: np.zeros((24, 4, 7), np.float32))
    split: str = "train"
    schema: LatentSchema | None = None

    def __post_init__(self) -> None:
        if self.schema is None:
            object.__setattr__(self, "schema", SCHEMA_OF_WIDTH.get(self.latents.shape[2]))

    @property
    def num_views(self) -> int:
        return self.latents.shape[1]


@dataclass(frozen=True)
class Source:
    """A data source of which nothing is read."""

    train: Split = field(default_factory=Split)
    name: str = "fake"
    mean_rgb: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std_rgb: tuple[float, float, float] = (0.25, 0.2, 0.3)


def view_batch(images: Tensor, num_latents: int = 7, **known: Any) -> ViewBatch:
    """A batch of uint8 images [B, V, H, W, 3] under random poses, the same for the same shape; `known` replaces it."""
    count, views = images.shape[:2]
    generator = torch.Generator().manual_seed(count)
    quat_xyzw = quat_positive(random_quat(count * views, generator)).float().unflatten(0, (count, views))
    latents = torch.rand(count, views, num_latents, generator=generator)
    if num_latents > 7:
        latents[..., 7:] -= 0.5
    fields: dict[str, Any] = {
        "images": images,
        "latents": latents,
        "quat_xyzw": quat_xyzw,
        "labels": torch.zeros(count, dtype=torch.int64),
        "object_indices": torch.arange(count),
        "view_indices": torch.arange(views).expand(count, views),
    }
    return ViewBatch(**fields | known)


def random_batch(count: int = 8, views: int = 2, num_latents: int = 7, side: int = 32) -> ViewBatch:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, views, side, side, 3), dtype=torch.uint8, generator=generator)
    return view_batch(images, num_latents)


def stored_batch(collection: ViewCollection, objects: Tensor, view: int | Tensor = 0) -> ViewBatch:
    """One view of each object, as a loader would yield it."""
    views = torch.as_tensor(view).expand(len(objects)).unsqueeze(1)
    pixels = np.empty((len(objects), 1, *collection.image_size, 3), dtype=np.uint8)
    sizes = np.empty((len(objects), 1, 2), dtype=np.int64)
    collection.read_views(objects.numpy(), views.numpy(), pixels, sizes)
    known = {"object_indices": objects, "view_indices": views}
    known["content_sizes"] = None if collection.fills_image else torch.from_numpy(sizes)
    return view_batch(torch.from_numpy(pixels), **known)


def rows_of(batch: ViewBatch, rows: slice) -> ViewBatch:
    """Some objects of a batch, as another process would hold them."""
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)


class ViewsInMemory(ViewCollection):
    """Images uint8 [n, V, H, W, 3] as a split; what isn't given is unknown, and every object is a class of its own."""

    def __init__(self, images: np.ndarray, **attributes: Any) -> None:
        self.pixels = images
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        self.num_objects, self.num_views = images.shape[:2]
        self.image_size, self.fills_image = images.shape[2:4], True
        self.split, self.folder, self.source = "train", Path("memory"), "images of a test"
        self.fingerprint = self.content_key = self.plan_sha256 = digest
        self.class_names = tuple(f"class {number}" for number in range(self.num_objects))
        self.labels = np.arange(self.num_objects)
        self.latents = np.zeros((*images.shape[:2], 0), dtype=np.float32)
        self.quats_xyzw = None
        self.mean_rgb, self.std_rgb = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        for name, value in attributes.items():
            setattr(self, name, value)
        if "schema" not in attributes:  # as a manifest without one
            self.schema = SCHEMA_OF_WIDTH.get(self.latents.shape[-1])

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        out[...] = self.pixels[object_indices[:, None], view_indices]


def feature_cache(features: Tensor, labels: Tensor, latents: Tensor, *known: Any, **named: Any) -> "FeatureCache":
    """A `FeatureCache` whose latents, unless a schema is given, are 3DIEBench's or 3DIEBench-T's if as many."""
    from ssl_equi.evaluation.features import FeatureCache

    schema = {"schema": SCHEMA_OF_WIDTH.get(latents.shape[-1])}
    return FeatureCache(features, labels, latents, *known, **schema | named)


def posed_features(
    num_objects: int = 20, num_views: int = 6, width: int | None = None, translation: bool = False
) -> "FeatureCache":
    """Random views of the Euler box, whose features are their quaternions, or random numbers of some width."""
    from ssl_equi.geometry.latents import quat_xyzw_from_latents
    from ssl_equi.scenes.sampling import sample_latents

    drawn = sample_latents(num_objects * num_views, np.random.default_rng(0), translation=translation)
    latents = torch.from_numpy(drawn).float().unflatten(0, (num_objects, num_views))
    quats_xyzw = quat_xyzw_from_latents(latents)
    generator = torch.Generator().manual_seed(0)
    features = quats_xyzw if width is None else torch.randn(num_objects, num_views, width, generator=generator)
    return feature_cache(features, torch.zeros(num_objects, dtype=torch.int64), latents, quats_xyzw)


class TurningPredictor:
    """Exact on features that are poses. No module."""

    name, actions = "turning", ToldActions.of("rotation")

    def embed(self, features: Tensor) -> Tensor:
        return features

    def advance(self, embeddings: Tensor, actions: Tensor) -> Tensor:
        return quat_multiply(embeddings, actions)

    def predict(self, features: Tensor, actions: Tensor) -> Tensor:
        return self.advance(self.embed(features), actions)


# ---------------------------------------------------------------- runs


def end_without_probes(run: "Pretraining[Any]") -> None:
    """In place of `Pretraining.finish`, where export, probes and report aren't looked at."""
    run.run.close()


def train_only(recipe: ModuleType, config: Any) -> None:
    """A recipe to its last step."""
    from ssl_equi.training.pretraining import Pretraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "finish", end_without_probes)
        recipe.main(config)


SmallConfig = Callable[..., Any]
"""The fixture `small_config` of tests/recipes."""


RECIPES = tuple(sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.py")))


def forget_processes() -> None:
    """Lets the next run begin: Accelerate's state belongs to a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def process_of_its_own() -> Iterator[None]:
    """A run before or after leaves no trace; the bits of a sum belong to a number of threads: one here."""
    forget_processes()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        forget_processes()


def load_recipe(name: str) -> ModuleType:
    """recipes/NAME.py as a module."""
    return importlib.import_module(f"recipes.{name}")


def event_lines(folder: Path, event: str = "loss") -> list[str]:
    """Whole lines of a run folder's metrics.jsonl that report a kind of event."""
    file = folder / "metrics.jsonl"
    written = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [line for line in written if line.endswith("\n") and json.loads(line)["event"] == event]


def numbers(folder: Path, event: str = "loss") -> list[dict[str, Any]]:
    """The same lines, read."""
    return [json.loads(line) for line in event_lines(folder, event)]


def losses(folder: Path) -> list[float]:
    """Of each step that was logged."""
    return [line["loss"] for line in numbers(folder)]


def refused(action: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr with which a run ends that a user must mend, status 1 and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        explain_errors(action)  # type: ignore[arg-type]
    errors = capsys.readouterr().err
    assert stop.value.code == 1
    assert errors.startswith("error: ") and errors.endswith("\n") and errors.count("\n") == 1, errors
    assert ": " in errors.removeprefix("error: "), "the sentence ends with a cure, after a colon"
    return errors.removeprefix("error: ").rstrip("\n")
