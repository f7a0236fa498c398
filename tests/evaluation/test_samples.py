import numpy as np
import pytest

from ssl_equi.evaluation.samples import evaluation_pairs, evaluation_views, training_pairs, training_views


def as_rows(pairs) -> np.ndarray:
    return np.stack([pairs.object_indices, pairs.first_view, pairs.second_view], axis=1)


@pytest.mark.parametrize(("num_views", "pairs_per_object"), [(2, 1), (2, 5), (7, 3), (7, 20), (20, 10)])
def test_pairs_are_distinct_views_of_every_object(num_views, pairs_per_object):
    pairs = evaluation_pairs(11, num_views, pairs_per_object, seed=0)
    assert len(pairs) == 11 * pairs_per_object
    assert np.bincount(pairs.object_indices).tolist() == [pairs_per_object] * 11
    assert (pairs.first_view != pairs.second_view).all()
    for views in (pairs.first_view, pairs.second_view):
        assert views.min() >= 0
        assert views.max() < num_views


def test_evaluation_pairs_depend_on_the_seed_and_the_shape_only():
    expected = as_rows(evaluation_pairs(5, 6, 3, seed=4))
    np.random.seed(123)
    np.testing.assert_array_equal(as_rows(evaluation_pairs(5, 6, 3, seed=4)), expected)
    assert (as_rows(evaluation_pairs(5, 6, 3, seed=5)) != expected).any()


def test_evaluation_pairs_are_pinned():
    assert as_rows(evaluation_pairs(2, 4, 2, seed=0)).tolist() == [[0, 3, 2], [0, 1, 0], [1, 2, 3], [1, 0, 1]]


def test_half_as_many_pairs_as_views_uses_each_view_once():
    pairs = evaluation_pairs(3, 20, 10, seed=1)
    for object_index in range(3):
        chosen = pairs.object_indices == object_index
        views = np.concatenate([pairs.first_view[chosen], pairs.second_view[chosen]])
        assert sorted(views) == list(range(20))


def test_training_pairs_change_with_the_epoch_and_come_back_with_the_seed():
    first, second = training_pairs(8, 10, 2, seed=0, epoch=0), training_pairs(8, 10, 2, seed=0, epoch=1)
    assert (as_rows(first) != as_rows(second)).any()
    np.testing.assert_array_equal(as_rows(first), as_rows(training_pairs(8, 10, 2, seed=0, epoch=0)))


def test_training_pairs_are_not_the_evaluation_pairs_of_the_same_seed():
    assert (as_rows(training_pairs(8, 10, 5, 0, epoch=0)) != as_rows(evaluation_pairs(8, 10, 5, 0))).any()


def test_pairs_are_spread_evenly_over_all_ordered_pairs_of_views():
    pairs = evaluation_pairs(20_000, 4, 1, seed=0)
    counts = np.bincount(pairs.first_view * 4 + pairs.second_view, minlength=16).reshape(4, 4)
    expected = 20_000 / 12
    assert np.abs(counts[~np.eye(4, dtype=bool)] - expected).max() < 5 * np.sqrt(expected)


def test_views_of_an_object_are_distinct_and_all_of_them_if_asked():
    views = evaluation_views(9, 6, 6, seed=0)
    assert (np.sort(views, axis=1) == np.arange(6)).all()
    assert training_views(9, 6, 2, seed=0, epoch=3).shape == (9, 2)


def test_a_split_of_single_views_is_refused():
    with pytest.raises(ValueError, match="objects have 1"):
        evaluation_pairs(3, 1, 1, seed=0)
