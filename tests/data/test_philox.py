import time

import numpy as np
import pytest

from ssl_equi.data.philox import words_at


@pytest.mark.parametrize("seed", range(20))
def test_words_are_those_of_numpy(seed):
    generator = np.random.default_rng(seed)
    key, upper = ([int(word) for word in generator.integers(0, 2**64, count, np.uint64)] for count in (2, 3))
    stream = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([0, *upper], np.uint64)).random_raw(5000)
    positions = generator.integers(0, 5000, (70, 3))
    found = words_at(positions, tuple(key), tuple(upper))
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, stream[positions])


@pytest.mark.parametrize("word", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_words_at_the_edges_of_64_bits_are_those_of_numpy(word):
    key, counter = np.full(2, word, np.uint64), np.array([0, word, word, word], np.uint64)
    stream = np.random.Philox(key=key, counter=counter).random_raw(64)
    np.testing.assert_array_equal(words_at(np.arange(64), (word, word), (word, word, word)), stream)


def test_far_positions_are_those_of_numpy():
    blocks = np.array([10**7, 2**32 - 1, 2**32, 2**40, 2**61 - 2])
    for block in blocks.tolist():
        stream = np.random.Philox(key=np.array([5, 6], np.uint64), counter=np.array([block, 0, 7, 8], np.uint64))
        np.testing.assert_array_equal(words_at(4 * block + np.arange(4), (5, 6), (0, 7, 8)), stream.random_raw(4))


def test_no_positions_give_no_words():
    assert words_at(np.empty((0, 2), np.int64), (0, 0), (0, 0, 0)).shape == (0, 2)


def test_words_of_a_batch_cost_milliseconds():
    positions = np.random.default_rng(0).integers(0, 2 * 10**7, 2048)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        words_at(positions, (1, 2), (0, 0, 1))
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.02
