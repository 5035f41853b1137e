"""Token ids to keys and back to lengths of common prefixes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_prefix_jax.cache.index import token_blocks
from sparse_prefix_jax.cache.index.tokens import (
  common_tokens,
  longest_common_tokens,
)

IDS = st.lists(st.sampled_from([0, 1, 255, 256, 65536, 2**31 - 1]), max_size=7)


def key(tokens):
  return np.asarray(tokens, ">i4").tobytes()


def naive_common(left, right):
  same = 0
  while same < min(len(left), len(right)) and left[same] == right[same]:
    same += 1
  return same


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 7, 8, 9])
def test_whole_blocks_and_a_tail(length):
  tokens = list(range(100, 100 + length))
  blocks, tail = token_blocks(tokens, 4)
  assert len(blocks) == length // 4
  assert all(len(block) == 16 for block in blocks)
  joined = np.frombuffer(b"".join(blocks) + tail, ">i4")
  np.testing.assert_array_equal(joined, tokens)


@pytest.mark.parametrize(
  "tokens",
  [
    [1, 2, 3],
    (1, 2, 3),
    range(1, 4),
    np.array([1, 2, 3], np.uint16),
    np.arange(6)[1:4],
    [np.int64(1), np.int32(2), 3],
    jnp.array([1, 2, 3], jnp.int32),
  ],
)
def test_any_kind_of_token_array(tokens):
  assert token_blocks(tokens, 2) == ((key([1, 2]),), key([3]))


@given(left=IDS, right=IDS)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_keys_compare_as_token_ids(left, right):
  assert (key(left) < key(right)) == (left < right)
  assert common_tokens(key(left), key(right)) == naive_common(left, right)


@given(others=st.lists(IDS, max_size=8), query=IDS)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_a_neighbour_has_the_longest_common_prefix(others, query):
  found = longest_common_tokens(sorted(map(key, others)), key(query))
  best = max((naive_common(other, query) for other in others), default=0)
  assert found == best


@pytest.mark.parametrize(
  ("tokens", "chunk", "message"),
  [
    (np.zeros((2, 2), np.int32), 2, r"one dimension.*\(2, 2\)"),
    (np.zeros(2), 2, "integers, got dtype float64"),
    (np.array([True]), 2, "integers, got dtype bool"),
    ([3, -1], 2, "from -1 to 3"),
    ([2**31], 2, "from 2147483648"),
    ([1], 0, "chunk must be at least 1 token, got 0"),
  ],
)
def test_bad_tokens_are_refused(tokens, chunk, message):
  with pytest.raises(ValueError, match=message):
    token_blocks(tokens, chunk)
