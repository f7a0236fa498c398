"""Which class is the object of? Asked of a single view, by a linear head, by neighbours, and from few objects.

All of them are judged on the same fixed views of the evaluated split, which chooses nothing: what is chosen is chosen
on held-out objects of the training split, or on held-out views where each object is a class of its own. Views of
classes that no training object has can't be told by any head: they are left out, and a note says so.
"""

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
from ssl_equi.evaluation.pairs import training_views
from ssl_equi.evaluation.protocol import ProbeProtocol
from ssl_equi.evaluation.skipping import TaskSkipped
from ssl_equi.evaluation.task_results import TaskResult, object_means
from ssl_equi.evaluation.task_samples import (
    classes,
    evaluated_view_rows,
    feature_matrix,
    held_out_objects,
    require_objects,
    require_varied,
    sample_objects,
    samples_of,
    view_rows,
)

LOW_SHOT_STREAM = 2  # of the seed: which objects are the few
BANK_ROWS = 65536  # training views that are compared at once
QUERY_ROWS = 1024


def classification(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class of the object from a single view: linear head, cross-entropy, the protocol's one learning rate."""
    require_classes(train, test)
    return classify_views(train, test, num_classes, protocol, seed)


def classify_views(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """`classification` without its conditions: collapsed features, or one class, score what a constant does."""
    top1_of_epochs: list[float] = []

    def judge_epoch(head: torch.nn.Sequential) -> None:
        top1_of_epochs.append(judge_class_head(train, test, head, protocol).metrics["top1"])

    after_epoch = judge_epoch if protocol.classification_best_epoch else None
    head = class_head(train, num_classes, protocol, seed, after_epoch)
    result = judge_class_head(train, test, head, protocol)
    if not protocol.classification_best_epoch:
        return result
    return replace(
        result,
        metrics=result.metrics | {"top1_best_epoch": max(top1_of_epochs)},
        baselines=result.baselines | {"top1_best_epoch": result.baselines["top1"]},
    )


def class_head(
    train: FeatureCache,
    num_classes: int,
    protocol: ProbeProtocol,
    seed: int,
    after_epoch: Callable[[torch.nn.Sequential], None] | None = None,
) -> torch.nn.Sequential:
    """The trained head of `classification`, which can be judged on several splits."""
    views_per_object = protocol.classification_views_per_object or train.num_views
    objects, epochs = torch.arange(train.num_objects), protocol.classification_epochs
    return _trained(train, objects, num_classes, views_per_object, protocol, epochs, seed, after_epoch)


def judge_class_head(
    train: FeatureCache, test: FeatureCache, head: torch.nn.Module, protocol: ProbeProtocol
) -> TaskResult:
    """What a head of classes achieves on the fixed views of a split; `train` is for the majority class."""
    rows = evaluated_view_rows(test, protocol)
    return _result(train, test, rows, predict(head, feature_matrix(test), rows))


def require_classes(train: FeatureCache, test: FeatureCache) -> None:
    """Raises TaskSkipped if the training objects are all of one class, or the features say nothing."""
    if bool((train.labels == train.labels[0]).all()):
        raise TaskSkipped(
            f"all {train.num_objects} training objects are of class {int(train.labels[0])}: use a data set of two or "
            "more classes"
        )
    require_varied(train, test)


def linear(train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int) -> TaskResult:
    """Class from a single view: linear head whose learning rate and weight decay training objects choose.

    All combinations learn side by side from a part of the training objects. The one with the highest top-1 on the
    others (then the lowest cross-entropy) is trained again on all, and judged after its last epoch. Where no class of
    those others is among the learnt ones, a part of each object's views stands for a part of the objects.
    """
    require_classes(train, test)
    require_objects(train, "training")
    views_per_object = protocol.linear_views_per_object or train.num_views
    fitted, choosing, notes = _held_out_samples(train, views_per_object, protocol, seed)
    strengths = [
        (learning_rate, weight_decay)
        for learning_rate in protocol.linear_learning_rates
        for weight_decay in protocol.linear_weight_decays
    ]
    features = feature_matrix(train)
    plan = HeadPlan((), protocol.linear_epochs, views_per_object, classes=num_classes)
    requests = [HeadRequest(features, fitted, plan, seed, *strength) for strength in strengths]
    candidates = train_heads(requests, protocol)
    learning_rate, weight_decay = strengths[_best_candidate(candidates, features, choosing)]
    chosen = replace(protocol, learning_rate=learning_rate, weight_decay=weight_decay)
    objects = torch.arange(train.num_objects)
    logits = _trained(train, objects, num_classes, views_per_object, chosen, protocol.linear_epochs, seed)
    result = judge_class_head(train, test, logits, protocol)
    details = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return replace(result, details=details, notes=(*result.notes, *notes))


def knn(train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int) -> TaskResult:
    """Class by a plain vote of the training views nearest in cosine similarity; of equal votes the first class wins."""
    similarities, labels = _neighbours(train, test, protocol.knn_neighbours, protocol, seed)
    return _vote(train, test, torch.ones_like(similarities), labels, num_classes, protocol)


def knn_weighted(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class by the training views nearest in cosine similarity, with votes of weight exp(similarity / temperature).

    As in Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018), who take
    200 neighbours and a temperature of .07.
    """
    similarities, labels = _neighbours(train, test, protocol.knn_weighted_neighbours, protocol, seed)
    weights = ((similarities - 1) / protocol.knn_temperature).exp()  # a factor that all share keeps them at most 1
    return _vote(train, test, weights, labels, num_classes, protocol)


def low_shot_1pct(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class from a single view: linear head that knows the labels of 1 % of the training objects."""
    return _low_shot(0.01, train, test, num_classes, protocol, seed)


def low_shot_10pct(
    train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    """Class from a single view: linear head that knows the labels of 10 % of the training objects."""
    return _low_shot(0.1, train, test, num_classes, protocol, seed)


def few_objects(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of at most `share` of the objects, equally many of each class (all of a class that has fewer).

    Args:
        labels: int `[n_objects]`.

    Raises:
        TaskSkipped: that is less than one object of each class.
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


def _samples_of_objects(train: FeatureCache, objects: Tensor, views_per_object: int, seed: int, epoch: int) -> Samples:
    """Views of some objects of the training split, drawn for one epoch."""
    views = training_views(train.num_objects, train.views_of_each, views_per_object, seed, epoch)
    return samples_of(train, view_rows(train, views, objects.cpu().numpy()), classes)


def _held_out_samples(
    train: FeatureCache, views_per_object: int, protocol: ProbeProtocol, seed: int
) -> tuple[Callable[[int], Samples], Samples, tuple[str, ...]]:
    """What heads learn from in an epoch, what chooses between them, and a note if that is no split by objects."""
    held_out = torch.from_numpy(held_out_objects(train.num_objects, protocol.linear_held_out_share, seed))
    labels = train.labels.cpu()
    if train.fewest_views < 2 or bool(torch.isin(labels[held_out], labels[~held_out]).any()):
        choosing = _samples_of_objects(train, held_out.nonzero()[:, 0], train.num_views, seed, epoch=0)
        learning = (~held_out).nonzero()[:, 0]
        return lambda epoch: _samples_of_objects(train, learning, views_per_object, seed, epoch), choosing, ()
    of_view = held_out_objects(train.num_views, protocol.linear_held_out_share, seed)
    learnt, others = np.flatnonzero(~of_view), np.flatnonzero(of_view)
    own_views = np.broadcast_to(train.views_of_each, train.num_objects)[:, None]
    drawn = min(views_per_object, len(learnt))

    def fitted(epoch: int) -> Samples:
        views = learnt[training_views(train.num_objects, len(learnt), drawn, seed, epoch)]
        return samples_of(train, view_rows(train, np.where(views < own_views, views, NO_VIEW)), classes)

    choosing = samples_of(train, view_rows(train, np.where(others < own_views, others, NO_VIEW)), classes)
    note = "learning rate and weight decay were chosen on held-out views, since held-out objects are of other classes"
    return fitted, choosing, (note,)


def _trained(
    train: FeatureCache,
    objects: Tensor,
    num_classes: int,
    views_per_object: int,
    protocol: ProbeProtocol,
    epochs: int,
    seed: int,
    after_epoch: Callable[[torch.nn.Sequential], None] | None = None,
) -> torch.nn.Sequential:
    """A linear head that learned from some of the training objects, with the protocol's learning rate."""
    request = HeadRequest(
        feature_matrix(train),
        lambda epoch: _samples_of_objects(train, objects, views_per_object, seed, epoch),
        HeadPlan((), epochs, views_per_object, classes=num_classes),
        seed,
        after_epoch=after_epoch,
    )
    return train_heads([request], protocol)[0]


def _best_candidate(candidates: Sequence[torch.nn.Module], features: Tensor, choosing: Samples) -> int:
    """Which of the heads has the highest top-1, and of these the lowest cross-entropy."""
    scores = []
    for head in candidates:
        logits = predict(head, features, choosing.rows)
        loss = float(F.cross_entropy(logits, choosing.targets))
        scores.append((top1(logits, choosing.targets), -loss if math.isfinite(loss) else -math.inf))
    return scores.index(max(scores))


def _low_shot(
    share: float, train: FeatureCache, test: FeatureCache, num_classes: int, protocol: ProbeProtocol, seed: int
) -> TaskResult:
    require_classes(train, test)
    objects = torch.from_numpy(few_objects(train.labels.cpu().numpy(), share, seed))
    views = np.broadcast_to(train.views_of_each, train.num_objects)[objects.numpy()].sum()
    batches_per_epoch = math.ceil(int(views) / protocol.batch_size)
    epochs = math.ceil(protocol.low_shot_steps / batches_per_epoch)
    few = replace(protocol, weight_decay=protocol.low_shot_weight_decay)
    result = judge_class_head(
        train, test, _trained(train, objects, num_classes, train.num_views, few, epochs, seed), protocol
    )
    return replace(result, details={"training_objects": len(objects)})


def _neighbours(
    train: FeatureCache, test: FeatureCache, count: int, protocol: ProbeProtocol, seed: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarity and class `[n, count]` of the training views nearest to each evaluated view."""
    require_classes(train, test)
    views_per_object = protocol.knn_views_per_object or train.num_views
    views = training_views(train.num_objects, train.views_of_each, views_per_object, seed, epoch=0)
    bank = samples_of(train, view_rows(train, views), classes)
    if count > len(bank):
        raise TaskSkipped(
            f"{count} neighbours can't be found among {len(bank)} training views: use more training objects or a "
            "protocol of fewer neighbours"
        )
    queries = feature_matrix(test)[evaluated_view_rows(test, protocol)[:, 0]]
    similarities, indices = nearest_rows(queries, feature_matrix(train)[bank.rows[:, 0]], count)
    return similarities, bank.targets[indices]


def _vote(
    train: FeatureCache, test: FeatureCache, weights: Tensor, labels: Tensor, num_classes: int, protocol: ProbeProtocol
) -> TaskResult:
    """Classes by the sum of the neighbours' weights `[n, k]`."""
    votes = torch.zeros(len(labels), num_classes, dtype=torch.float64, device=labels.device)
    votes.scatter_add_(1, labels, weights.double())
    return _result(train, test, evaluated_view_rows(test, protocol), votes)


def _result(train: FeatureCache, test: FeatureCache, rows: Tensor, logits: Tensor) -> TaskResult:
    """Metrics of logits (or votes) `[n, C]` of views `rows [n, 1]` of the evaluated split.

    Raises:
        TaskSkipped: no view is of a class that training objects have.
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
