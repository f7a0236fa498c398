"""The same results on a GPU as on the CPU: objectives, encoders, views, batches, checkpoints, a whole run.

Each test is written for any device. On the CPU those run that tell something there, or that are the only way to try a
test's own code before a GPU is at hand; with a GPU, `pytest -m cuda` runs all of them there.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipes import byol
from ssl_equi.data.batch import ViewBatch
from ssl_equi.data.loading.device import DecodedOnDevice, device_loader
from ssl_equi.data.loading.gpu import encoded_views, gpu_loader, nvjpeg_decoder
from ssl_equi.data.loading.rendered import RenderedViews, config_of_stored, rendered_loader
from ssl_equi.data.loading.threads import stored_loader
from ssl_equi.data.shards.reader import ShardDataset
from ssl_equi.encoders import create_encoder
from ssl_equi.encoders.compiling import compile_networks
from ssl_equi.training import run as run_module
from ssl_equi.training.config import loader_size
from ssl_equi.training.devices import on_device
from ssl_equi.training.pretraining import Pretraining
from ssl_equi.views import operations
from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.presets import PRESETS, SMALL_VIEW_PRESETS, small_view_pipeline, view_pipelines
from tests.encoders.symmetric_encoders import CASES, TOLERANCES, errors_by_element
from tests.fakes import end_without_probes, forget_processes
from tests.recipes import sharded_runs
from tests.recipes.conftest import shrunk
from tests.recorded_graph import simulate_graphs
from tests.references.comparison import configuration, package_values, random_batch, small_objective
from tests.references.networks import Batch
from tests.references.table import REFERENCES

ROOT = Path(__file__).parents[1]
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
ON_EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", CUDA])
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative to the largest value, if that is above 1
LEAST_COSINE = 0.95  # of a gradient in bfloat16 to that in float32
EMBEDDED = [key for key in REFERENCES if key.endswith(" embedded")]
# Encoders without a symmetry, and a steerable one.
OTHER_ENCODERS = ("sie_resnet18", "resnet18_small_images", "strided_cnn_tiny", "strided_cnn_pooled",
                  "c8_resnet10_small_images")  # fmt: skip
SLEEP_CYCLES = 20_000_000  # some 10 ms of a GPU


@pytest.fixture(autouse=True)
def same_products() -> Iterator[None]:
    """Products in full float32, on a fresh slate for runs, with one CPU thread."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    forget_processes()
    yield
    forget_processes()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = allowed
    torch.set_num_threads(threads)


def recipe_of(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


def assert_equal_values(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].cpu().double() - value.double()).abs().max().item()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), f"{name} differs by {difference:.1e}"


# ---------------------------------------------------------------- objectives


def moved(batch: Batch, device: str, dtype: torch.dtype) -> Batch:
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return dataclasses.replace(
        batch, **{n: v.to(device, dtype if v.is_floating_point() else v.dtype) for n, v in tensors.items()}
    )


@pytest.mark.parametrize("key", REFERENCES)
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.cuda),
        pytest.param("cuda", torch.float64, marks=pytest.mark.cuda),
    ],
)
def test_objectives_give_the_losses_and_gradients_of_the_cpu(key: str, device: str, dtype: torch.dtype) -> None:
    """Those of the CPU in float64 are held to the references elsewhere."""
    recipe, batch = recipe_of(key.split()[0]), random_batch(REFERENCES[key])
    config = configuration(recipe, key)
    expected = package_values(small_objective(recipe, config), batch)
    objective = small_objective(recipe, config).to(device, dtype)
    assert_equal_values(package_values(objective, moved(batch, device, dtype)), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("key", EMBEDDED)
@ON_EACH_DEVICE
def test_gradients_in_bfloat16_point_the_same_way(key: str, device: str) -> None:
    recipe = recipe_of(key.split()[0])
    batch = moved(random_batch(REFERENCES[key]), device, torch.float32)
    gradients = []
    for bf16 in (False, True):
        objective = small_objective(recipe, configuration(recipe, key)).to(device, torch.float32)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            values = package_values(objective, batch)
        gradients.append(torch.cat([v.flatten() for name, v in values.items() if name.startswith("gradient")]).float())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > LEAST_COSINE


@pytest.mark.parametrize(
    ("key", "device"),
    [
        *(pytest.param(key, "cpu", marks=pytest.mark.slow) for key in EMBEDDED),
        *(pytest.param(key, "cuda", marks=pytest.mark.cuda) for key in ("byol embedded", "equicaps embedded")),
    ],
)
def test_compiled_networks_give_the_losses_and_gradients_of_eager_ones(key: str, device: str) -> None:
    """In twenty steps of training, of which each begins with equal weights: rounding differs, and grows with steps."""
    recipe, first = recipe_of(key.split()[0]), random_batch(REFERENCES[key])
    config = configuration(recipe, key)
    eager, compiled = (small_objective(recipe, config).to(device, torch.float32) for _ in range(2))
    torch.compiler.reset()
    compile_networks(compiled)
    optimizer = torch.optim.Adam([p for p in eager.parameters() if p.requires_grad], lr=1e-3)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        views = torch.randn(first.views.shape, generator=generator, dtype=torch.float64)
        batch = moved(dataclasses.replace(first, views=views), device, torch.float32)
        compiled.load_state_dict(eager.state_dict())
        eager.zero_grad()
        compiled.zero_grad()
        expected = {name: value.cpu().clone() for name, value in package_values(eager, batch).items()}
        found = package_values(compiled, batch)
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5, abs=1e-5)
        assert_equal_values(found, expected, TOLERANCE[torch.float32])
        optimizer.step()
        if hasattr(eager, "update_target"):
            eager.update_target(0.99)


# ---------------------------------------------------------------- encoders


def outputs_and_gradients(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Features in train mode, and gradients of all parameters."""
    features = encoder.train()(images)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (features * weights.to(features)).sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return {"features": features.detach()} | gradients


@pytest.mark.parametrize("name", [*CASES, *OTHER_ENCODERS])
@ON_EACH_DEVICE
def test_encoders_give_the_features_and_gradients_of_the_cpu(name: str, device: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return CASES[name].make() if name in CASES else create_encoder(name, 32)

    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = outputs_and_gradients(make().double(), images.double())
    found = outputs_and_gradients(make().to(device), images.to(device))
    assert_equal_values(found, expected, TOLERANCE[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("device", [CUDA])  # on the CPU in test_symmetric_encoders.py, in more precisions
def test_encoders_keep_their_symmetry(label: str, device: str) -> None:
    case = CASES[label]
    subject = case.subject().to(device).double()
    images = case.images(dtype=torch.float64).to(device)
    errors = errors_by_element(case, subject, subject.act_on_features, images)
    assert max(errors.values()) < TOLERANCES["float64"]


# ---------------------------------------------------------------- views and batches


def pipelines() -> dict[str, ViewPipeline]:
    views = {f"{name} {view}": p for name in PRESETS for view, p in enumerate(view_pipelines(name, 32))}
    return views | {f"small {name}": small_view_pipeline(name, 16) for name in SMALL_VIEW_PRESETS}


@pytest.mark.parametrize("name", pipelines())
@ON_EACH_DEVICE
def test_views_are_those_of_the_cpu(name: str, device: str) -> None:
    """But for a few pixels, where a threshold or a branch between hues falls to the other side."""
    pipeline, generator = pipelines()[name], torch.Generator().manual_seed(0)
    images = torch.randint(256, (16, 3, 40, 50), dtype=torch.uint8, generator=generator)
    parameters = pipeline.draw(16, source_sizes=(40, 50), generator=generator)
    expected, found = pipeline.apply(images, parameters), pipeline.apply(images.to(device), parameters)
    assert found.device.type == device and found.dtype == expected.dtype
    assert ((found.cpu() - expected).abs() > 1e-3).float().mean() < 1e-3


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_compiled_colours_are_those_of_the_cpu(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images, factors = torch.rand(16, 3, 24, 24, generator=generator), torch.rand(16, 4, generator=generator)
    values = torch.cat([0.2 + 1.6 * factors[:, :3], factors[:, 3:] - 0.5], dim=1)
    positions = torch.rand(16, 4, generator=generator).argsort(dim=1)
    expected = operations.adjust_colours(images, values, positions)
    found = operations.compiled_adjust_at_once()(images.to(device), values.to(device), positions.to(device))
    assert_equal_values({"colours": found}, {"colours": expected}, 1e-5)


def copied_by_the_trainer(batches: Iterator[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """On the stream of its steps, without `on_device`."""
    return (batch.to(device) for batch in batches)


def what_slow_steps_see(batches: Iterator[ViewBatch], device: str) -> list[Tensor]:
    """Images of twelve steps, each of which looks at its batch long after the host has gone on to the next ones."""
    seen = []
    for _, batch in zip(range(12), batches):
        if device == "cuda":
            torch.cuda._sleep(SLEEP_CYCLES)
        seen.append(batch.images.clone())
        del batch  # so that its memory may be used again
    return seen


@pytest.mark.parametrize("way", [on_device, copied_by_the_trainer])
@pytest.mark.parametrize("workers", [0, 2])
@ON_EACH_DEVICE
def test_a_slow_device_gets_whole_batches(way: Any, workers: int, device: str, tiny_data: Path) -> None:
    """A buffer is not filled again before the copy from it is done, nor memory of the device before the step."""
    dataset = ShardDataset(tiny_data, "train")
    with stored_loader(dataset, global_batch_size=8, seed=0, threads=1, workers=workers, prefetch=1) as loader:
        seen = what_slow_steps_see(way(loader.batches(), torch.device(device)), device)
    with stored_loader(dataset, global_batch_size=8, seed=0, threads=1, pin_memory=False) as loader:
        for images, batch in zip(seen, loader.batches()):
            assert torch.equal(images.cpu(), batch.images)


@ON_EACH_DEVICE
def test_a_slow_device_gets_whole_batches_that_were_rendered(device: str, tiny_data: Path) -> None:
    views = RenderedViews(config_of_stored(ShardDataset(tiny_data, "train")), "train", device)
    with rendered_loader(views, global_batch_size=8, seed=0) as loader:
        seen = what_slow_steps_see(on_device(loader.batches(), torch.device(device)), device)
        for images, batch in zip(seen, loader.batches()):
            assert (images.int() - batch.images.int()).abs().max() <= 1  # a level of 255


@ON_EACH_DEVICE
def test_a_slow_device_gets_whole_batches_of_what_it_keeps(device: str, tiny_data: Path) -> None:
    dataset = ShardDataset(tiny_data, "train")
    with device_loader(DecodedOnDevice(dataset, device), global_batch_size=8, seed=0) as loader:
        seen = what_slow_steps_see(on_device(loader.batches(), torch.device(device)), device)
    with stored_loader(dataset, global_batch_size=8, seed=0, threads=1, pin_memory=False) as loader:
        for images, batch in zip(seen, loader.batches()):
            assert torch.equal(images.cpu(), batch.images)


@pytest.mark.cuda
def test_a_slow_device_gets_whole_batches_that_it_decoded(tiny_data: Path) -> None:
    device = torch.device("cuda")
    views = encoded_views(ShardDataset(tiny_data, "train"))
    decode = nvjpeg_decoder(device)
    with gpu_loader(views, global_batch_size=8, seed=0, device=device, decode=decode) as loader:
        seen = what_slow_steps_see(on_device(loader.batches(), device), "cuda")
        for images, batch in zip(seen, loader.batches()):
            assert torch.equal(images, batch.images)


# ---------------------------------------------------------------- runs


@pytest.fixture
def losses_of_a_run(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, float]]:
    """losses_of_a_run(folder, device, steps, recipe="sie", **options): trains on a device, on from what the folder has,
    to the last step."""
    monkeypatch.setattr(Pretraining, "finish", end_without_probes)
    gpu_is_there = torch.cuda.is_available()
    sizes = {"image_size": 32, "batch_size": 8, "epochs": 2, "log_every": 1, "loader_threads": 2}

    def train(folder: Path, device: str, steps: int, name: str = "sie", **options: Any) -> dict[int, float]:
        forget_processes()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_is_there and device == "cuda")
        recipe, where = recipe_of(name), {"data_dir": tiny_data, "out": folder, "resume": True, "steps": steps}
        recipe.main(dataclasses.replace(shrunk(recipe.embedded()), **sizes | where | options))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if line["event"] == "loss"}

    return train


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cpu", "cpu"),
        pytest.param("cuda", "cpu", marks=pytest.mark.cuda),
        pytest.param("cpu", "cuda", marks=pytest.mark.cuda),
        pytest.param("cuda", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_a_run_goes_on_on_the_other_device(
    first: str, second: str, losses_of_a_run: Callable[..., dict[int, float]], tmp_path: Path
) -> None:
    expected = losses_of_a_run(tmp_path / "whole", "cpu", 6)
    assert losses_of_a_run(tmp_path / "parts", first, 3).keys() == {1, 2, 3}
    found = losses_of_a_run(tmp_path / "parts", second, 6)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sie", {}), ("seq_jepa", {}), ("byol", {"optimizer": "adamw"}), ("equicaps", {}), ("moco", {}), ("essl", {}),
        ("simsiam", {"optimizer": "sgd"}), ("sie", {"mixed_precision": "bf16"}),
    ],
)  # fmt: skip
def test_captured_steps_are_ordinary_steps(
    name: str, options: dict[str, Any], device: str, losses_of_a_run: Callable[..., dict[int, float]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In 50 steps, of which the last 20 are those of a run that went on."""
    if device == "cpu":
        simulate_graphs(monkeypatch)
        monkeypatch.setattr(run_module, "check_cuda_graph", lambda *_: None)
    options = options | {"epochs": 20, "log_every": 5}
    expected = losses_of_a_run(tmp_path / "ordinary", device, 50, name, **options)
    losses_of_a_run(tmp_path / "captured", device, 30, name, cuda_graph=True, **options)
    found = losses_of_a_run(tmp_path / "captured", device, 50, name, cuda_graph=True, **options)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_weights_may_be_shared_out(
    device: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a group of one process, begun and gone on with in another; with a momentum target and clipped gradients."""
    monkeypatch.setattr(Pretraining, "finish", end_without_probes)
    gpu_is_there = torch.cuda.is_available()

    def losses(folder: str, device: str, **options: Any) -> dict[int, float]:
        forget_processes()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_is_there and device == "cuda")
        byol.main(sharded_runs.configuration(tiny_data, out=tmp_path / folder, **options))
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if line["event"] == "loss"}

    expected = losses("whole", "cpu")
    losses("parts", device, sharding="full", steps=3)
    assert losses("parts", device, sharding="full") == pytest.approx(expected, rel=1e-3)
    means = {"mixed_precision": "bf16", "checkpoint_activations": True}
    in_half = losses("in half", device, sharding="full", **means)
    assert in_half == pytest.approx(losses("in half, whole", device, **means), rel=5e-2)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_a_launched_run_ends_with_its_report(device: str, tiny_data: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "recipes/sie.py", "--steps", "20",
        "--data-dir", str(tiny_data), "--image-size", "32", "--batch-size", "8", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "results.json").is_file()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    size = loader_size(recipe_of("sie").embedded(), torch.device(device))
    assert config["loader_workers"] == size.workers
    assert ("views once into the memory of cuda" in ended.stdout) == (device == "cuda")


@pytest.mark.parametrize("device", [CUDA])
def test_loader_processes_leave_the_device_alone(device: str, tiny_data: Path) -> None:
    """They have no context there, which would take half a GiB of its memory each."""
    torch.zeros(1, device=device)
    with stored_loader(ShardDataset(tiny_data, "train"), global_batch_size=8, seed=0, workers=2) as loader:
        next(on_device(loader.batches(), torch.device(device)))
        for worker in loader.fetcher.decoder._workers:  # type: ignore[attr-defined]
            files = [os.readlink(file) for file in Path(f"/proc/{worker.process.pid}/fd").iterdir()]
            assert files and not [file for file in files if "nvidia" in file]
