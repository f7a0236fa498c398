"""Parameters of an augmentation, read from the features of the image and of its augmentation.

As seq-JEPA (Ghaemi et al., NeurIPS 2025, arXiv:2505.03176) asks for crop, jitter and blur, by an MLP on two images'
features with mean squared error; there both are augmented, here one is the image as it is. Targets are the columns of
the standard action encoding of `ssl_equi.views.actions`, from the whole image to its augmentation: the crop's centre
and log sides, whether it was mirrored, log factors of the jitter, its hue, and the blur's deviation, in fixed units.
"""

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.derived import ViewSubset, spread_views
from ssl_equi.evaluation.baselines import Baseline
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, HeadRequest, Samples, predict, train_heads
from ssl_equi.evaluation.metrics import r2_notes, r2_uniform, varying_components
from ssl_equi.evaluation.protocol import AUGMENTATION_PARAMETERS
from ssl_equi.evaluation.samples import feature_matrix, require_varied, require_varied_targets
from ssl_equi.evaluation.task import Ask, TaskResult, task
from ssl_equi.evaluation.tasks.augmentation_equivariance import augmentation_pipeline
from ssl_equi.views.actions import action_columns, augmentation_action
from ssl_equi.views.parameters import ViewParameters
from ssl_equi.views.pipeline import ViewPipeline
from ssl_equi.views.transforms import CentralCrop


@dataclass(frozen=True)
class AugmentedViews:
    """An augmentation of each view of a split, drawn beforehand: an `ssl_equi.evaluation.features.ImageChange`."""

    pipeline: ViewPipeline
    parameters: ViewParameters
    seed: int

    @property
    def label(self) -> str:
        return "augmented"

    @property
    def fingerprint(self) -> str:
        described = f"augmented by {self.pipeline} with seed {self.seed} for {len(self.parameters)} views"
        return hashlib.sha256(described.encode()).hexdigest()

    def __call__(self, images: Tensor, first_object: int) -> Tensor:
        """uint8 `[b, V, H, W, 3]` of consecutive objects."""
        objects, views_per_object = images.shape[:2]
        rows = slice(first_object * views_per_object, (first_object + objects) * views_per_object)
        augmented = self.pipeline.apply(images.flatten(0, 1).permute(0, 3, 1, 2), self.parameters.rows(rows))
        pixels = augmented.clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().unflatten(0, (objects, views_per_object))


@dataclass(frozen=True)
class AugmentedPairs:
    """Images and their augmentations.

    Attributes:
        cache: two views of each image, first as it is, then augmented.
        targets: float32 `[n_images, K]`.
    """

    cache: FeatureCache
    targets: Tensor


@task(AUGMENTATION_PARAMETERS, group="images")
def augmentation_parameters(ask: Ask) -> TaskResult:
    """R2 of all parameters (`r2_uniform`), of each transform's (`r2_uniform_crop`) and of each one (`r2_of_hue`)."""
    chosen, data, whole = ask.protocol.augmentation_parameters, ask.encoding.data, ask.whole
    require_varied(ask.train, ask.test)
    pipeline = augmentation_pipeline(chosen.augmentations, data.evaluation)
    train = _pairs(ask, pipeline, data.probe_train, whole.train, chosen.max_train_images, stream=0)
    test = _pairs(ask, pipeline, data.evaluation, whole.test, chosen.max_images, stream=1)
    require_varied_targets(test.targets)
    train_part, test_part = ask.part_of(train.cache), ask.part_of(test.cache)
    samples = Samples(_pair_rows(train_part), train.targets.to(whole.device))
    plan = HeadPlan(chosen.hidden, chosen.epochs, samples_per_object=1)
    request = HeadRequest(feature_matrix(train_part), lambda epoch: samples, plan, ask.seed)
    (head,) = train_heads([request], ask.protocol)
    answers = predict(head, feature_matrix(test_part), _pair_rows(test_part)).cpu()
    metrics = _metrics(answers, test.targets, {transform.name for transform in pipeline.transforms})
    return TaskResult(
        metrics=metrics,
        baselines={name: Baseline(0.0, "constant") for name in metrics},  # of R2 around each component's own mean
        num_samples=len(answers),
        notes=r2_notes(test.targets),
    )


def drawn_parameters(pipeline: ViewPipeline, count: int, image_size: int, seed: int) -> tuple[ViewParameters, Tensor]:
    """Parameters of `count` images' augmentations, and the actions `[count, K]` to them from the images as they are."""
    sizes = (image_size, image_size)
    drawn = pipeline.draw(count, source_sizes=sizes, generator=torch.Generator().manual_seed(seed))
    crop = None
    if drawn.crop is not None:
        whole = torch.tensor(sizes).expand(count, 2)
        crop = CentralCrop(drawn.crop.output_size).draw(count, whole, torch.Generator())
    return drawn, augmentation_action(ViewParameters(crop=crop), drawn)


def _pairs(
    ask: Ask,
    pipeline: ViewPipeline,
    views: ViewCollection,
    features: FeatureCache,
    max_images: int,
    stream: int,
) -> AugmentedPairs:
    """Some images of a split and one augmentation of each, which is encoded once for all parts and seeds."""

    def make() -> AugmentedPairs:
        seed = ask.protocol.augmentation_parameters.seed
        subset = ViewSubset(views, *spread_views(views.num_objects, views.views_of_each, max_images, seed))
        count = subset.num_objects * subset.num_views
        drawing_seed = 2 * seed + stream
        parameters, targets = drawn_parameters(pipeline, count, views.image_size[0], drawing_seed)
        augmented = ask.encode(subset, AugmentedViews(pipeline, parameters, drawing_seed)).features.flatten(0, 1)
        objects, of_object = torch.from_numpy(subset.object_indices)[:, None], torch.from_numpy(subset.view_indices)
        original = features.features[objects, of_object].flatten(0, 1)
        labels = torch.from_numpy(subset.labels).repeat_interleave(subset.num_views)
        pairs = torch.stack([original, augmented], dim=1)
        return AugmentedPairs(FeatureCache(pairs, labels, torch.zeros(count, 2, 0), None), targets)

    return ask.made.once(("augmented pairs", stream), make)


def _pair_rows(cache: FeatureCache) -> Tensor:
    """Rows `[n, 2]`: each image and its augmentation."""
    return torch.arange(2 * cache.num_objects, device=cache.features.device).view(-1, 2)


def _metrics(answers: Tensor, targets: Tensor, transforms: set[str]) -> dict[str, float]:
    """R2 of all columns, of each transform's columns, and of each column, as far as they vary."""
    present = [field.name for field in fields(ViewParameters) if field.name in transforms]
    names, owners = zip(*action_columns("standard", present).items())
    varying = varying_components(targets).nonzero().flatten().tolist()
    columns = {"r2_uniform": varying}
    for transform in dict.fromkeys(owners):
        columns[f"r2_uniform_{transform}"] = [index for index in varying if owners[index] == transform]
    columns |= {f"r2_of_{names[index]}": [index] for index in varying}
    return {name: r2_uniform(answers[:, chosen], targets[:, chosen]) for name, chosen in columns.items() if chosen}
