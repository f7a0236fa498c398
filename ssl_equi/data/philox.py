"""Any words of a Philox4x64-10 stream, computed where they stand.

The generator is a keyed bijection of a counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
section 3.3): four words a counter, none of which needs those before it. NumPy has the same generator, but only gives
out runs of words, and setting it to another place costs more than computing a few words here.
"""

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # the golden ratio and sqrt(3) - 1, as 64-bit fractions
_WORDS_PER_COUNTER = 4
_HALF_BITS = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def words_at(positions: np.ndarray, key: tuple[int, int], upper_counter: tuple[int, int, int]) -> np.ndarray:
    """The words at `positions` of a stream, uint64 of the shape of `positions`.

    Word p is `np.random.Philox(key=key, counter=(0, *upper_counter)).random_raw(p + 1)[p]`.

    Args:
        positions: int64 of any shape, each at least 0.
        key: two unsigned 64-bit integers.
        upper_counter: the second to fourth 64-bit word of the counter; the first one counts.
    """
    places = positions.ravel().astype(np.uint64)
    counters, place_of_counter = np.unique(places // np.uint64(_WORDS_PER_COUNTER), return_inverse=True)
    counter_words = np.empty((_WORDS_PER_COUNTER, len(counters)), dtype=np.uint64)
    counter_words[0] = counters + np.uint64(1)  # NumPy counts up before it makes its first words
    for row, word in enumerate(upper_counter, start=1):
        counter_words[row] = word
    words = _philox4x64(counter_words, key)[places % np.uint64(_WORDS_PER_COUNTER), place_of_counter]
    return words.reshape(positions.shape)


def _philox4x64(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds on counters uint64 [4, n]; the words that NumPy gives out for them, in its order."""
    first, second, third, fourth = counters
    for number in range(_ROUNDS):
        low_key, high_key = (np.uint64((word + number * step) % 2**64) for word, step in zip(key, _KEY_STEPS))
        first_high, first_low = _product(first, _MULTIPLIERS[0])
        third_high, third_low = _product(third, _MULTIPLIERS[1])
        first, second, third, fourth = (
            third_high ^ second ^ low_key,
            third_low,
            first_high ^ fourth ^ high_key,
            first_low,
        )
    return np.stack([first, second, third, fourth])


def _product(values: np.ndarray, factor: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of the 128-bit products, from the products of 32-bit halves."""
    value_low, value_high = values & _LOW_HALF, values >> _HALF_BITS
    factor_low, factor_high = factor & _LOW_HALF, factor >> _HALF_BITS
    carried = value_high * factor_low + (value_low * factor_low >> _HALF_BITS)  # at most 2**64 - 2**32: no overflow
    middle = value_low * factor_high + (carried & _LOW_HALF)
    return value_high * factor_high + (carried >> _HALF_BITS) + (middle >> _HALF_BITS), values * factor
