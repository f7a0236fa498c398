"""Which class is the object of? Asked of a single view, by a linear head, by neighbours, and from few objects.

All of them are judged on the same fixed views of the evaluated split, which chooses nothing: what is chosen is chosen
on held-out objects of the training split, or on held-out views where each object is a class of its own. Views of
classes that no training object has can't be told by any head: they are left out, and a note says so.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.data.view_counts import NO_VIEW
from ssl_equi.evaluation.baselines import classification_baselines
from ssl_equi.evaluation.features import FeatureCache
from ssl_equi.evaluation.heads import HeadPlan, HeadRequest, Samples, predict, train_heads
from ssl_equi.evaluation.metrics import balanced_top1, per_class_recall, top1
from ssl_equi.evaluation.samples import (
    TaskSkipped,
    classes,
    evaluated_rows,
    feature_matrix,
    held_out_objects,
    require_objects,
    require_varied,
    sample_objects,
    samples_of,
    training_views,
    view_rows,
)
from ssl_equi.evaluation.task import Ask, Probe, TaskResult, object_means, task

LOW_SHOT_STREAM = 2  # of the seed: which objects are the few
BANK_ROWS = 65536  # training views that are compared at once
QUERY_ROWS = 1024


def require_classes(ask: Ask) -> None:
    """Raises TaskSkipped if the training objects are all of one class, or the features say nothing."""
    labels = ask.train.labels
    if bool((labels == labels[0]).all()):
        raise TaskSkipped(
            f"all {len(labels)} training objects are of class {int(labels[0])}: use a data set of two or more classes"
        )
    require_varied(ask.train, ask.test)


def _follow_epochs(ask: Ask) -> Callable[[torch.nn.Sequential], None] | None:
    """Keeps the top-1 of every epoch where a protocol reports the best one."""
    if not ask.protocol.classification_best_epoch:
        return None
    top1_of_epochs: list[float] = ask.made.once(("top-1 of epochs", ask.part, ask.seed), list)
    return lambda head: top1_of_epochs.append(_judged(ask, ask.test, head).metrics["top1"])


CLASS = Probe(
    "views",
    targets=classes,
    plan=lambda ask: HeadPlan(
        (), ask.protocol.classification_epochs, ask.protocol.classification_views_per_object, classes=ask.num_classes
    ),
    require=require_classes,
    after_epoch=_follow_epochs,
)


@task("classification", probes=[CLASS])
def classification(ask: Ask) -> TaskResult:
    """Class of the object from a single view: linear head, cross-entropy, the protocol's one learning rate."""
    CLASS.check(ask)
    return classify_views(ask)


def classify_views(ask: Ask) -> TaskResult:
    """`classification` without its conditions: collapsed features, or one class, score what a constant does."""
    result = _judged(ask, ask.test, ask.head(CLASS))
    if not ask.protocol.classification_best_epoch:
        return result
    best = max(ask.made.once(("top-1 of epochs", ask.part, ask.seed), list[float]))
    return replace(
        result,
        metrics=result.metrics | {"top1_best_epoch": best},
        baselines=result.baselines | {"top1_best_epoch": result.baselines["top1"]},
    )


def judge_class(ask: Ask, test: FeatureCache) -> TaskResult:
    """What the head of `classification` achieves on another split's features of this part."""
    CLASS.check(ask)
    return _judged(ask, test, ask.head(CLASS))


@task("linear")
def linear(ask: Ask) -> TaskResult:
    """Class from a single view: linear head whose learning rate and weight decay training objects choose.

    All combinations learn side by side from a part of the training objects. The one with the highest top-1 on the
    others (then the lowest cross-entropy) is trained again on all, and judged after its last epoch. Where no class of
    those others is among the learnt ones, a part of each object's views stands for a part of the objects.
    """
    require_classes(ask)
    require_objects(ask.train, "training")
    protocol, features = ask.protocol, feature_matrix(ask.train)
    views_per_object = protocol.linear_views_per_object or ask.train.num_views
    fitted, choosing, notes = _held_out_samples(ask, views_per_object)
    strengths = [*itertools.product(protocol.linear_learning_rates, protocol.linear_weight_decays)]
    plan = HeadPlan((), protocol.linear_epochs, views_per_object, classes=ask.num_classes)
    requests = [HeadRequest(features, fitted, plan, ask.seed, *strength) for strength in strengths]
    candidates = train_heads(requests, protocol)
    learning_rate, weight_decay = strengths[_best_candidate(candidates, features, choosing)]
    everyone = np.arange(ask.train.num_objects)
    chosen = _request(ask, everyone, views_per_object, protocol.linear_epochs, learning_rate, weight_decay)
    result = _judged(ask, ask.test, train_heads([chosen], protocol)[0])
    details = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return replace(result, details=details, notes=(*result.notes, *notes))


@task("knn")
def knn(ask: Ask) -> TaskResult:
    """Class by a plain vote of the training views nearest in cosine similarity; of equal votes the first class wins."""
    similarities, labels = _neighbours(ask, ask.protocol.knn_neighbours)
    return _vote(ask, torch.ones_like(similarities), labels)


@task("knn_weighted")
def knn_weighted(ask: Ask) -> TaskResult:
    """Class by the training views nearest in cosine similarity, with votes of weight exp(similarity / temperature).

    As in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018), who take
    200 neighbours and a temperature of .07.
    """
    similarities, labels = _neighbours(ask, ask.protocol.knn_weighted_neighbours)
    # A factor that all votes share keeps them at most 1.
    return _vote(ask, ((similarities - 1) / ask.protocol.knn_temperature).exp(), labels)


@task("low_shot_1pct")
def low_shot_1pct(ask: Ask) -> TaskResult:
    """Class from a single view: linear head that knows the labels of 1 % of the training objects."""
    return _low_shot(ask, 0.01)


@task("low_shot_10pct")
def low_shot_10pct(ask: Ask) -> TaskResult:
    """Class from a single view: linear head that knows the labels of 10 % of the training objects."""
    return _low_shot(ask, 0.1)


def few_objects(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of at most `share` of the objects, equally many of each class (all of a class that has fewer).

    Raises TaskSkipped where that is less than one object of each class.
    """
    present = np.unique(labels)
    per_class = int(share * len(labels) / len(present) + 1e-9)  # whole objects; .1 * 30 / 3 must not be less than 1
    if per_class < 1:
        raise TaskSkipped(
            f"{share:.0%} of the {len(labels)} training objects is less than one for each of {len(present)} classes: "
            f"use {math.ceil(len(present) / share)} objects or more"
        )
    order = np.random.default_rng([seed, LOW_SHOT_STREAM]).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == label][:per_class] for label in present]))


def nearest_rows(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and indices `[Q, count]` of the rows of `bank [N, D]` nearest to each query `[Q, D]`."""
    bank = F.normalize(bank, dim=1)
    found = []
    for chunk in F.normalize(queries, dim=1).split(QUERY_ROWS):
        similarities, indices = chunk.new_empty(len(chunk), 0), torch.empty(len(chunk), 0, dtype=torch.int64)
        indices = indices.to(chunk.device)
        for start in range(0, len(bank), BANK_ROWS):
            nearer, where = (chunk @ bank[start : start + BANK_ROWS].T).topk(min(count, len(bank) - start, BANK_ROWS))
            similarities, order = torch.cat([similarities, nearer], dim=1).sort(dim=1, descending=True)
            indices = torch.cat([indices, where + start], dim=1).gather(1, order)[:, :count]
            similarities = similarities[:, :count]
        found.append((similarities, indices))
    return torch.cat([similarities for similarities, _ in found]), torch.cat([indices for _, indices in found])


def _samples_of_objects(train: FeatureCache, objects: np.ndarray, each: int, seed: int, epoch: int) -> Samples:
    """At most `each` views of some objects of the training split, drawn for one epoch."""
    views = training_views(train.num_objects, train.views_of_each, each, seed, epoch)
    return samples_of(train, view_rows(train, views, objects), classes)


def _request(
    ask: Ask,
    objects: np.ndarray,
    views_per_object: int,
    epochs: int,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> HeadRequest:
    """A linear head that learns from some of the training objects."""
    return HeadRequest(
        feature_matrix(ask.train),
        lambda epoch: _samples_of_objects(ask.train, objects, views_per_object, ask.seed, epoch),
        HeadPlan((), epochs, views_per_object, classes=ask.num_classes),
        ask.seed,
        learning_rate,
        weight_decay,
    )


def _held_out_samples(ask: Ask, views_per_object: int) -> tuple[Callable[[int], Samples], Samples, tuple[str, ...]]:
    """What heads learn from in an epoch, what chooses between them, and a note if that is no split by objects."""
    train, share, seed = ask.train, ask.protocol.linear_held_out_share, ask.seed
    held_out = held_out_objects(train.num_objects, share, seed)
    labels = train.labels.cpu().numpy()
    if train.fewest_views < 2 or np.isin(labels[held_out], labels[~held_out]).any():
        choosing = _samples_of_objects(train, np.flatnonzero(held_out), train.num_views, seed, epoch=0)
        learning = np.flatnonzero(~held_out)
        return lambda epoch: _samples_of_objects(train, learning, views_per_object, seed, epoch), choosing, ()
    of_view = held_out_objects(train.num_views, share, seed)
    learnt, others = np.flatnonzero(~of_view), np.flatnonzero(of_view)
    own_views = np.broadcast_to(train.views_of_each, train.num_objects)[:, None]
    drawn = min(views_per_object, len(learnt))

    def fitted(epoch: int) -> Samples:
        views = learnt[training_views(train.num_objects, len(learnt), drawn, seed, epoch)]
        return samples_of(train, view_rows(train, np.where(views < own_views, views, NO_VIEW)), classes)

    choosing = samples_of(train, view_rows(train, np.where(others < own_views, others, NO_VIEW)), classes)
    note = "learning rate and weight decay were chosen on held-out views, since held-out objects are of other classes"
    return fitted, choosing, (note,)


def _best_candidate(candidates: Sequence[torch.nn.Module], features: Tensor, choosing: Samples) -> int:
    """Which of the heads has the highest top-1, and of these the lowest cross-entropy."""
    scores = []
    for head in candidates:
        logits = predict(head, features, choosing.rows)
        loss = float(F.cross_entropy(logits, choosing.targets))
        scores.append((top1(logits, choosing.targets), -loss if math.isfinite(loss) else -math.inf))
    return scores.index(max(scores))


def _low_shot(ask: Ask, share: float) -> TaskResult:
    require_classes(ask)
    train, protocol = ask.train, ask.protocol
    objects = few_objects(train.labels.cpu().numpy(), share, ask.seed)
    views = np.broadcast_to(train.views_of_each, train.num_objects)[objects].sum()
    batches_per_epoch = math.ceil(int(views) / protocol.batch_size)
    epochs = math.ceil(protocol.low_shot_steps / batches_per_epoch)
    request = _request(ask, objects, train.num_views, epochs, weight_decay=protocol.low_shot_weight_decay)
    result = _judged(ask, ask.test, train_heads([request], protocol)[0])
    return replace(result, details={"training_objects": len(objects)})


def _neighbours(ask: Ask, count: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and class `[n, count]` of the training views nearest to each evaluated view."""
    require_classes(ask)
    train = ask.train
    views_per_object = ask.protocol.knn_views_per_object or train.num_views
    views = training_views(train.num_objects, train.views_of_each, views_per_object, ask.seed, epoch=0)
    bank = samples_of(train, view_rows(train, views), classes)
    if count > len(bank):
        raise TaskSkipped(
            f"{count} neighbours can't be found among {len(bank)} training views: use more training objects or a "
            "protocol of fewer neighbours"
        )
    queries = feature_matrix(ask.test)[evaluated_rows(ask.test, "views", ask.protocol)[:, 0]]
    similarities, indices = nearest_rows(queries, feature_matrix(train)[bank.rows[:, 0]], count)
    return similarities, bank.targets[indices]


def _vote(ask: Ask, weights: Tensor, labels: Tensor) -> TaskResult:
    """Classes by the sum of the neighbours' weights `[n, k]`."""
    votes = torch.zeros(len(labels), ask.num_classes, dtype=torch.float64, device=labels.device)
    votes.scatter_add_(1, labels, weights.double())
    return _result(ask.train, ask.test, evaluated_rows(ask.test, "views", ask.protocol), votes)


def _judged(ask: Ask, test: FeatureCache, head: torch.nn.Module) -> TaskResult:
    """What a head of classes achieves on the fixed views of a split."""
    rows = evaluated_rows(test, "views", ask.protocol)
    return _result(ask.train, test, rows, predict(head, feature_matrix(test), rows))


def _result(train: FeatureCache, test: FeatureCache, rows: Tensor, logits: Tensor) -> TaskResult:
    """Metrics of logits (or votes) `[n, C]` of views `rows [n, 1]` of the evaluated split.

    Raises TaskSkipped where no view is of a class that training objects have.
    """
    labels = classes(test, rows)
    seen = torch.isin(labels, train.labels)
    notes: tuple[str, ...] = ()
    num_objects = None
    if not bool(seen.all()):
        unseen = labels[~seen].unique().tolist()
        numbers = ", ".join(str(label) for label in unseen)
        missing = f"of {len(unseen)} classes that no training object has (numbers {numbers})"
        if not bool(seen.any()):
            raise TaskSkipped(f"all {len(labels)} evaluated views are {missing}: use splits of the same classes")
        notes = (f"{int((~seen).sum())} of {len(labels)} evaluated views are {missing}, and are left out",)
        rows, logits, labels = rows[seen], logits[seen], labels[seen]
        num_objects = len(sample_objects(test, rows).unique())
    hits = (logits.argmax(dim=1) == labels).double()
    return TaskResult(
        metrics={"top1": top1(logits, labels), "balanced_top1": balanced_top1(logits, labels)},
        baselines=classification_baselines(train.labels, labels),
        num_samples=len(labels),
        per_class_recall=per_class_recall(logits, labels).numpy(),
        object_scores={"top1": object_means(hits, sample_objects(test, rows), test.num_objects)},
        notes=notes,
        num_objects=num_objects,
    )
