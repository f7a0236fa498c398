"""Does an augmentation move the features of all images alike? Asked of any encoder, without labels or poses.

Some augmentations are drawn, each shared by all images, and the features before and after are compared by the measures
of `ssl_equi.evaluation.tasks.care_measures`, in the manner of CARE (Gupta et al., ICLR 2024, arXiv:2306.13924), which
takes 20 augmentations of the test set. Lower is better for all of them, beside their baselines.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ssl_equi.data.collection import ViewCollection
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import encode_images
from ssl_equi.evaluation.protocol import EquivarianceProtocol
from ssl_equi.evaluation.samples import TaskSkipped
from ssl_equi.evaluation.task import Ask, TaskResult, task
from ssl_equi.evaluation.tasks.care_measures import (
    MIN_ROWS_PER_DIM,
    composition_error,
    gamma,
    has_enough_rows,
    is_collapsed,
    least_squares_error,
    shuffled,
    shuffled_displacements,
    wahba,
)
from ssl_equi.runtime.frozen import frozen
from ssl_equi.views.parameters import ViewParameters
from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.presets import ViewRecipe, view_pipelines

RECIPES = {
    # Images stay recognisable and keep most of their content; nothing maps all colours to one, as grayscale would.
    "mild": ViewRecipe(
        scale=(0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=1.0, grayscale_probability=0.0
    ),
    # Each of them at every image but the mirroring, so that there is always something to find.
    "crop_flip_jitter_blur": ViewRecipe(
        scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=1.0, grayscale_probability=0.0,
        blur_probability=1.0,
    ),
}  # fmt: skip


@task("augmentation_equivariance", group="augmentations", once=True)
def augmentation_equivariance(ask: Ask) -> TaskResult:
    """How far features are from turning alike: `gamma_f`, and errors of maps, means over the augmentations."""
    encoding, protocol = ask.encoding, ask.protocol.augmentation_equivariance
    collection = encoding.data.evaluation
    if collection.num_images < 2:
        raise TaskSkipped("there is only one image, and features of two can be compared: use more images")

    subjects = ask.whole.beside or [ask.whole]
    encodings = [subject.encoding for subject in subjects if subject.encoding is not None]

    def encode() -> list[AugmentedFeatures]:
        """Of the encoder and of its random counterpart, which share the augmented images."""
        with ExitStack() as stack:
            for each in encodings:
                stack.enter_context(each.store.counting(each.encoder.module))
            encoder = encoding.encoder
            return encode_augmented(
                [each.encoder.module for each in encodings], collection, encoder.mean_rgb, encoder.std_rgb, protocol,
                encoder.device, encoder.batch_size,
            )  # fmt: skip

    features = subjects[0].made.once("augmented features", encode)[encodings.index(encoding)]
    result, notes = compare(features.part(ask.whole.parts[ask.part]), protocol.seed)
    if not result.metrics:
        raise TaskSkipped("; ".join(notes))
    return replace(result, notes=tuple(notes))


@dataclass(frozen=True)
class AugmentedFeatures:
    """Features of the same images under augmentations that are shared by all of them, float32 on the CPU.

    Attributes:
        original: `[n, D]`.
        augmented: `[A, n, D]`, one row of the first axis an augmentation.
        composed: `[C, n, D]`, augmentation 2k + 1 applied after augmentation 2k.
    """

    original: Tensor
    augmented: Tensor
    composed: Tensor

    def part(self, columns: slice) -> "AugmentedFeatures":
        """The same with only these feature columns."""
        return AugmentedFeatures(self.original[:, columns], self.augmented[..., columns], self.composed[..., columns])


def encode_augmented(
    encoders: Sequence[nn.Module],
    collection: ViewCollection,
    mean_rgb: Sequence[float],
    std_rgb: Sequence[float],
    protocol: EquivarianceProtocol,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
) -> list[AugmentedFeatures]:
    """Features of images of the collection before and after the augmentations, one set per encoder.

    Args:
        encoders: each maps `[N, 3, H, W]` to `[N, D]`; on `device`; state and modes are left untouched. They share the
            augmented images, which cost as much to make as a small encoder costs to run.
        batch_size: images that are augmented at once.
    """
    pipeline = augmentation_pipeline(protocol.augmentations, collection)
    generator = torch.Generator().manual_seed(protocol.seed)
    draws = [
        pipeline.draw(1, source_sizes=collection.image_size, generator=generator)
        for _ in range(protocol.num_augmentations)
    ]
    first_composed = 1 + len(draws)
    chunks: list[list[Tensor]] = [[] for _ in encoders]  # each [1 + A + C, images of the chunk, D]
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(frozen(encoder))
        for images in _image_chunks(collection, protocol, torch.device(device), batch_size):
            found: list[dict[int, Tensor]] = [{} for _ in encoders]  # by place in the chunk
            for place, augmented in _augmentations(pipeline, images, draws, protocol.num_compositions):
                for encoder, features_at in zip(encoders, found, strict=True):
                    pixels = (augmented * 255).permute(0, 2, 3, 1).contiguous()  # normalised in place, so once for each
                    features_at[place] = encode_images(encoder, pixels, mean_rgb, std_rgb).cpu()
            for chunks_of_encoder, features_at in zip(chunks, found, strict=True):
                chunks_of_encoder.append(torch.stack([features_at[place] for place in range(len(features_at))]))
    together = [torch.cat(chunks_of_encoder, dim=1) for chunks_of_encoder in chunks]
    if not all(bool(torch.isfinite(features).all()) for features in together):
        raise RuntimeError(
            "the encoder produced features of augmented images that are not finite: the run diverged, use an earlier "
            "checkpoint"
        )
    return [
        AugmentedFeatures(features[0], features[1:first_composed], features[first_composed:]) for features in together
    ]


def augmentation_pipeline(name: str, views: ViewCollection) -> ViewPipeline:
    """The pipeline that augmentations are drawn from: a recipe of ours, or view 1 of a preset of `views.presets`.

    Raises TaskSkipped for images that aren't square.
    """
    height, width = views.image_size
    if height != width:
        raise TaskSkipped(f"images are {height} x {width} pixels, and crops are square: use square images")
    return RECIPES[name].pipeline(height) if name in RECIPES else view_pipelines(name, height)[0]


def compare(features: AugmentedFeatures, seed: int) -> tuple[TaskResult, list[str]]:
    """The metrics of one part beside their baselines, and why some are missing; without metrics if all are."""
    num_images, dim = features.original.shape
    metrics: dict[str, float] = {}
    baselines: dict[str, Baseline] = {}
    if is_collapsed(features.original):
        notes = ["all images have the same features, the encoder has collapsed"]
        return TaskResult(metrics, baselines, num_images), notes
    gamma_metric, notes = _mean_gamma(features, seed)
    if gamma_metric is not None:
        metrics["gamma_f"] = gamma_metric[0]
        baselines["gamma_f"] = Baseline(gamma_metric[1], "shuffled displacements")
    if has_enough_rows(num_images, dim):
        metrics |= _map_errors(features, seed)
        unrelated = AugmentedFeatures(shuffled(features.original, seed), features.augmented, features.composed)
        errors_of_unrelated = _map_errors(unrelated, seed)
        baselines |= {name: Baseline(value, "shuffled images") for name, value in errors_of_unrelated.items()}
    else:
        notes.append(
            f"wahba_error, composition_error and least_squares_error are left out, because {num_images} images are too "
            f"few for {dim} features ({MIN_ROWS_PER_DIM * dim} needed)"
        )
    return TaskResult(metrics, baselines, num_images), notes


def _mean_gamma(features: AugmentedFeatures, seed: int) -> tuple[tuple[float, float] | None, list[str]]:
    """gamma_f and its null, means over the augmentations that move anything; None if none does."""
    values, nulls, shares_left_out = [], [], []
    for augmented in features.augmented:
        estimate = gamma(features.original, augmented, seed)
        null = gamma(features.original, shuffled_displacements(features.original, augmented, seed), seed)
        shares_left_out.append(estimate.share_left_out)
        if estimate.value is not None and null.value is not None:
            values.append(estimate.value)
            nulls.append(null.value)
    if not values:
        return None, ["gamma_f is left out, because no augmentation moves any features"]
    share = float(np.mean(shares_left_out))
    notes = [f"gamma_f leaves out {share:.1%} of the pairs, which do not move"] if share > 0 else []
    return (float(np.mean(values)), float(np.mean(nulls))), notes


def _map_errors(features: AugmentedFeatures, seed: int) -> dict[str, float]:
    """Wahba and least-squares error, means over the augmentations; composition error, over the compositions if any."""
    fits = [wahba(features.original, augmented) for augmented in features.augmented]
    rotations = [rotation for rotation, _ in fits]
    errors = {"wahba_error": float(np.mean([error for _, error in fits]))}
    if len(features.composed):
        compositions = [
            composition_error(rotations[2 * index], rotations[2 * index + 1], wahba(features.original, composed)[0])
            for index, composed in enumerate(features.composed)
        ]
        errors["composition_error"] = float(np.mean(compositions))
    left_over = [least_squares_error(features.original, augmented, seed) for augmented in features.augmented]
    return errors | {"least_squares_error": float(np.mean(left_over))}


def _augmentations(
    pipeline: ViewPipeline, images: Tensor, draws: Sequence[ViewParameters], num_compositions: int
) -> Iterator[tuple[int, Tensor]]:
    """Images `[n, 3, H, W]` as they are, under each draw, and under pairs of draws in a row, each with its place."""

    def apply_to_all(images: Tensor, draw: ViewParameters) -> Tensor:
        return pipeline.apply(images, draw.rows(torch.zeros(len(images), dtype=torch.long)))

    yield 0, images
    for index, draw in enumerate(draws):
        once = apply_to_all(images, draw)
        yield 1 + index, once
        if index % 2 == 0 and index // 2 < num_compositions:
            yield 1 + len(draws) + index // 2, apply_to_all(once, draws[index + 1])


def _image_chunks(
    collection: ViewCollection, protocol: EquivarianceProtocol, device: torch.device, batch_size: int
) -> Iterator[Tensor]:
    """The chosen images in [0, 1], float32 `[n, 3, H, W]`, `batch_size` at a time."""
    order = np.random.default_rng(protocol.seed).permutation(collection.num_images)
    chosen = np.sort(order[: protocol.max_images])
    for start in range(0, len(chosen), batch_size):
        object_indices, view_indices = collection.numbered(chosen[start : start + batch_size])
        pixels = np.empty((len(object_indices), 1, *collection.image_size, 3), dtype=np.uint8)
        collection.read_views(object_indices, view_indices[:, None], pixels)
        yield torch.from_numpy(pixels[:, 0]).to(device).permute(0, 3, 1, 2).float().div_(255)
