"""What evaluating an encoder costs beside the usual way: images that are encoded for probes, and time of retrieval.

    python tools/bench_eval.py                                      a minute or two on a CPU
    python tools/bench_eval.py --device cuda --objects 1000 --json eval.json

Probes: SIE's released evaluation trains one head a script, and each encodes its images anew. A probe of the class takes
one view of every object of both splits in each of 300 epochs, a probe of rotation or of colour two; every one is run on
three parts of the features. Of n objects with V views, that is

    300 epochs x n objects x (1 + 2 + 2) views x 3 parts = 4500 n images,

236 million on 3DIEBench (n = 52 472). Here every view is encoded once, n V images, and all heads train on cached
features: 4500 / V times fewer, 90 on 3DIEBench (V = 50). A plain implementation of the usual way runs for a few epochs
on a small set, and its images are counted, as are those of our suite; the count of the former must be the formula's.

Retrieval: mean reciprocal rank and hit@k among the views of an object, and the retrieval error among all views, of the
same embeddings, by the functions of `ssl_equi.evaluation.predictors.retrieval` and by a loop that takes one query after
the other: `F.cosine_similarity` with the gallery, which is then sorted. Both must find the same. The loop and ours take
turns; a ratio is that of the seconds a query in one round, of which the loop answers only some. On one core of a CPU a
query among 50 views is already real work, which a batch makes only some times cheaper; a query among all views of a set
is bound by memory, which a batch is not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import Row, print_rows, row_of, seconds_of, write_rows
from torch import Tensor, nn

from ssl_equi.cli import explain_errors, parse_command_line
from ssl_equi.data.collection import ViewCollection
from ssl_equi.data.images import normalise_images
from ssl_equi.errors import UserError
from ssl_equi.evaluation.features import encode_split
from ssl_equi.evaluation.predictors.retrieval import hit_at_k, mean_reciprocal_rank, prediction_retrieval_error, ranks
from ssl_equi.evaluation.predictors.retrieval_results import HIT_RANKS
from ssl_equi.evaluation.protocol import sie
from ssl_equi.evaluation.suite import ask_features, tasks_for
from ssl_equi.geometry.latents import quat_xyzw_from_latents
from ssl_equi.geometry.rotations import relative_quat
from ssl_equi.latents.actions import SEVERAL, actions_of
from ssl_equi.latents.schema import THREEDIEBENCH
from ssl_equi.scenes.sampling import sample_latents

PUBLISHED_EPOCHS = 300
VIEWS_A_SAMPLE = {"classification": 1, "relative_rotation": 2, "colour": 2}  # the three probes of SIE
TARGETS_WIDTH = {"relative_rotation": 4, "colour": 2}
MEAN_RGB = STD_RGB = (0.5, 0.5, 0.5)
IMAGE_SIDE, FEATURES, CLASSES = 8, 12, 3
TARGET = 50.0  # times fewer images, times less time
EQUAL_SHARE = 1e-3  # of queries for which two views may be equally near in float32
EQUAL_ERROR = 1e-5  # between retrieval errors of the same view


@dataclass(frozen=True)
class Config:
    """Sizes."""

    train_objects: int = 24
    """Objects that heads are trained on, while images are counted."""
    test_objects: int = 8
    """Objects that heads are judged on, while images are counted."""
    views: int = 50
    """Views of an object; 50 in 3DIEBench."""
    epochs: int = 3
    """Epochs of the usual way that are run and counted; the published number is 300."""
    objects: int = 200
    """Objects among whose views is retrieved."""
    loop_queries: int = 300
    """Queries that the loop is timed with, evenly spread; ours always answers all of them."""
    embedding_dim: int = 1024
    """Width of the embeddings; 1024 in SIE."""
    rounds: int = 3
    """Rounds in which the loop and ours are timed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where everything runs."""
    json: Path | None = None
    """Also write the figures to this file."""


class CountingEncoder(nn.Module):
    """A small encoder that counts the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * IMAGE_SIDE**2, FEATURES)
        self.num_features, self.images = FEATURES, 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return self.layer(images.flatten(1))


PARTS = {"all": slice(0, FEATURES), "inv": slice(0, FEATURES // 2), "equi": slice(FEATURES // 2, FEATURES)}


class RandomViews(ViewCollection):
    """A split of noise with known poses, in memory."""

    def __init__(self, split: str, num_objects: int, num_views: int) -> None:
        generator = np.random.default_rng(len(split))
        self.split, self.num_objects, self.num_views = split, num_objects, num_views
        self.folder, self.source = Path(), "noise"
        self.fingerprint = self.content_key = self.plan_sha256 = ""
        self.image_size, self.fills_image = (IMAGE_SIDE, IMAGE_SIDE), True
        self.class_names = tuple(f"class {number}" for number in range(CLASSES))
        self.labels = np.arange(num_objects, dtype=np.int64) % CLASSES
        drawn = sample_latents(num_objects * num_views, generator).astype(np.float32)
        self.schema, self.latents = THREEDIEBENCH, drawn.reshape(num_objects, num_views, -1)
        self.quats_xyzw = quat_xyzw_from_latents(torch.from_numpy(self.latents)).numpy()
        shape = (num_objects, num_views, IMAGE_SIDE, IMAGE_SIDE, 3)
        self.pixels = generator.integers(0, 256, shape, dtype=np.uint8)

    def _read(
        self, object_indices: np.ndarray, view_indices: np.ndarray, out: np.ndarray, sizes_out: np.ndarray | None
    ) -> None:
        out[:] = self.pixels[object_indices[:, None], view_indices]


def images_of_the_usual_way(num_objects: int, epochs: int = PUBLISHED_EPOCHS) -> int:
    """Images that nine probes encode: the module's formula."""
    return epochs * num_objects * sum(VIEWS_A_SAMPLE.values()) * len(PARTS)


def samples_of_an_epoch(
    split: RandomViews, views_a_sample: int, generator: np.random.Generator, batch_size: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of object indices [b] in random order, with random distinct views [b, views_a_sample] of each."""
    order = generator.permutation(split.num_objects)
    for start in range(0, len(order), batch_size):
        objects = order[start : start + batch_size]
        yield objects, generator.random((len(objects), split.num_views)).argsort(axis=1)[:, :views_a_sample]


def targets_of(task: str, split: RandomViews, objects: np.ndarray, views: np.ndarray) -> Tensor:
    rows = objects[:, None], views
    if task == "classification":
        return torch.from_numpy(split.labels[objects])
    if task == "relative_rotation":
        return relative_quat(*torch.from_numpy(split.quats_xyzw[rows]).unbind(1))
    first, second = torch.from_numpy(split.latents[rows]).unbind(1)
    return actions_of(THREEDIEBENCH, SEVERAL["rotation_color"][1:])(first, second)


def probe_the_usual_way(
    encoder: nn.Module, columns: slice, task: str, train: RandomViews, test: RandomViews, epochs: int, device: str
) -> float:
    """One probe: images are read and encoded whenever a head needs their features. Returns the last test loss."""
    generator, views_a_sample = np.random.default_rng(0), VIEWS_A_SAMPLE[task]
    width = views_a_sample * (columns.stop - columns.start)
    head = nn.Linear(width, TARGETS_WIDTH.get(task, CLASSES)).to(device)
    loss_of = F.cross_entropy if task == "classification" else F.mse_loss
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    test_loss = 0.0
    for _ in range(epochs):
        for split in (train, test):
            for objects, views in samples_of_an_epoch(split, views_a_sample, generator):
                pixels = torch.from_numpy(split.pixels[objects[:, None], views]).to(device)
                with torch.inference_mode():
                    features = encoder(normalise_images(pixels.flatten(0, 1), MEAN_RGB, STD_RGB))[:, columns]
                answers = head(features.clone().view(len(objects), -1))
                loss = loss_of(answers, targets_of(task, split, objects, views).to(device))
                if split is train:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                else:
                    test_loss = loss.item()
    return test_loss


def count_images(config: Config) -> list[Row]:
    """Counts of both ways, and the ratio for the published number of epochs.

    Raises:
        RuntimeError: the plain implementation encoded other than the formula's number of images.
    """
    torch.manual_seed(0)
    splits = [RandomViews("train", config.train_objects, config.views)]
    splits.append(RandomViews("test", config.test_objects, config.views))
    num_objects = config.train_objects + config.test_objects

    usual = CountingEncoder().to(config.device).eval()
    for columns in PARTS.values():
        for task in VIEWS_A_SAMPLE:
            probe_the_usual_way(usual, columns, task, splits[0], splits[1], config.epochs, config.device)
    expected = images_of_the_usual_way(num_objects, config.epochs)
    if usual.images != expected:
        raise RuntimeError(f"nine probes of {config.epochs} epochs encoded {usual.images} images, not {expected}")

    ours = CountingEncoder().to(config.device)
    train, test = [encode_split(ours, split, MEAN_RGB, STD_RGB, config.device) for split in splits]
    epochs = {f"{name}_epochs": config.epochs for name in ("classification", "rotation", "absolute_rotation", "colour")}
    protocol = replace(sie(), **epochs)
    ask_features(train, test, PARTS, tasks_for(test), CLASSES, protocol, config.device)
    published = images_of_the_usual_way(num_objects)
    return [
        row_of(f"images, nine probes the usual way, {config.epochs} epochs", [usual.images], expected),
        row_of("images, the same probes and more with ours", [ours.images], num_objects * config.views),
        row_of("images of 300 epochs, usual / ours", [published / ours.images], TARGET),
    ]


class RetrievalProblem(NamedTuple):
    """Predictions and embeddings [n, V, E] of all views, and their poses [n, V, 4]."""

    predictions: Tensor
    gallery: Tensor
    quats_xyzw: Tensor


class Found(NamedTuple):
    """Mean reciprocal rank, and hit@k for the ranks of `HIT_RANKS`."""

    mrr: float
    hits: list[float]


def make_retrieval(config: Config) -> RetrievalProblem:
    """Embeddings of noise, and predictions that are half right."""
    torch.manual_seed(0)
    shape = (config.objects, config.views, config.embedding_dim)
    gallery = torch.randn(shape)
    latents = sample_latents(config.objects * config.views, np.random.default_rng(0)).astype(np.float32)
    quats_xyzw = quat_xyzw_from_latents(torch.from_numpy(latents)).view(config.objects, config.views, 4)
    predictions = gallery + config.embedding_dim**0.25 * torch.randn(shape)
    return RetrievalProblem(*(tensor.to(config.device) for tensor in (predictions, gallery, quats_xyzw)))


def rank_by_a_loop(problem: RetrievalProblem, queries: Sequence[int]) -> Found:
    """Sorts the views of the object for one query after the other."""
    reciprocal_sum, hits = 0.0, [0] * len(HIT_RANKS)
    for query in queries:
        item, view = divmod(query, problem.gallery.shape[1])
        similarities = F.cosine_similarity(problem.predictions[item, view].unsqueeze(0), problem.gallery[item])
        order = similarities.argsort(descending=True).cpu()
        rank = 1 + int((order == view).nonzero()[0, 0])
        reciprocal_sum += 1 / rank
        for index, k in enumerate(HIT_RANKS):
            hits[index] += rank <= k
    return Found(reciprocal_sum / len(queries), [hit / len(queries) for hit in hits])


def ranks_of_ours(problem: RetrievalProblem) -> Tensor:
    """Ranks [n, V] of all queries at once."""
    true_view = torch.arange(problem.gallery.shape[1], device=problem.gallery.device)
    return ranks(problem.predictions, problem.gallery, true_view.expand(problem.gallery.shape[:2]))


def found_by_ranks(found_ranks: Tensor) -> Found:
    """The measures of some queries' ranks."""
    return Found(mean_reciprocal_rank(found_ranks), [hit_at_k(found_ranks, k) for k in HIT_RANKS])


def errors_by_a_loop(problem: RetrievalProblem, queries: Sequence[int]) -> Tensor:
    """Retrieval errors [q]: sorts all views of the set for one query after the other."""
    predictions, gallery, poses = (tensor.flatten(0, 1) for tensor in problem)
    errors = []
    for query in queries:
        order = F.cosine_similarity(predictions[query].unsqueeze(0), gallery).argsort(descending=True).cpu()
        errors.append(1 - float(poses[query] @ poses[int(order[0])]) ** 2)
    return torch.tensor(errors, dtype=torch.float64)


def errors_of_ours(problem: RetrievalProblem) -> Tensor:
    """Retrieval errors [n V] of all queries at once."""
    predictions, gallery, poses = (tensor.flatten(0, 1) for tensor in problem)
    return prediction_retrieval_error(predictions, gallery, poses, poses).cpu()


def check_equal(problem: RetrievalProblem, queries: Sequence[int]) -> None:
    """Raises RuntimeError unless the loop and ours find the same.

    Where two views are equally near in float32, which of them is found is a matter of rounding.
    """
    loop, ours = rank_by_a_loop(problem, queries), found_by_ranks(ranks_of_ours(problem).flatten()[queries])
    if not np.allclose([loop.mrr, *loop.hits], [ours.mrr, *ours.hits], rtol=0, atol=EQUAL_SHARE):
        raise RuntimeError(f"the loop found {loop} and ours {ours}")
    different = (errors_by_a_loop(problem, queries) - errors_of_ours(problem)[queries]).abs() > EQUAL_ERROR
    if float(different.double().mean()) > EQUAL_SHARE:
        raise RuntimeError(f"the loop and ours differ in the retrieval errors of {int(different.sum())} queries")


def time_retrieval(config: Config) -> list[Row]:
    """Time a query of the loop over ours in the same round, after a round in which both must find the same."""
    problem = make_retrieval(config)
    all_queries = config.objects * config.views
    queries = list(range(0, all_queries, max(1, all_queries // config.loop_queries)))[: config.loop_queries]
    check_equal(problem, queries)
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "MRR and hit@k": (
            lambda: rank_by_a_loop(problem, queries), lambda: found_by_ranks(ranks_of_ours(problem)),
        ),
        "retrieval error": (lambda: errors_by_a_loop(problem, queries), lambda: errors_of_ours(problem)),
    }  # fmt: skip
    milliseconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}  # a query: the loop's, ours
    for _ in range(config.rounds):
        for name, (loop, ours) in works.items():
            of_loop = 1000 * seconds_of(loop, config.device) / len(queries)
            milliseconds[name].append((of_loop, 1000 * seconds_of(ours, config.device) / all_queries))
    rows = [row_of(f"{name}, loop / ours", [loop / ours for loop, ours in of]) for name, of in milliseconds.items()]
    totals = [
        [sum(pair) for pair in zip(*of_round, strict=True)] for of_round in zip(*milliseconds.values(), strict=True)
    ]
    rows.append(row_of("both, loop / ours", [loop / ours for loop, ours in totals], TARGET))
    for name, of in milliseconds.items():
        rows.append(row_of(f"milliseconds a query, {name}, loop", [loop for loop, _ in of]))
        rows.append(row_of(f"milliseconds a query, {name}, ours", [ours for _, ours in of]))
    return rows


def main(config: Config) -> None:
    sizes = (
        config.train_objects,
        config.test_objects,
        config.epochs,
        config.objects,
        config.loop_queries,
        config.embedding_dim,
        config.rounds,
    )
    if min(sizes) < 1 or config.views < 2 or config.train_objects < CLASSES:
        raise UserError(
            f"a size is too small in {config}: give {CLASSES} training objects, 2 views and 1 of all else or more"
        )
    counts = count_images(config)
    print_rows(f"{config.views} views an object", counts, ["{:,.0f}"] * len(counts))
    times = time_retrieval(config)
    title = f"{config.objects} objects, {config.views} views, E={config.embedding_dim}, {config.device}"
    print_rows(title, times, ["{:,.1f}"] * 3 + ["{:.3f}"] * (len(times) - 3))
    write_rows(config.json, counts + times, config.device)


if __name__ == "__main__":
    config = parse_command_line(Config, __doc__)
    explain_errors(lambda: main(config))
