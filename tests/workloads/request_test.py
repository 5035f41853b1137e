import numpy as np
import pytest

from sparse_prefix_jax.workloads import Trace, common_prefix, token_trace


def test_token_trace_keeps_rows_and_groups():
  trace = token_trace("t", [np.array([3, 1]), np.array([2])], [7, 8])
  first, second = trace.requests
  assert first.tokens.tolist() == [3, 1] and first.ids.dtype == np.int32
  assert (first.length, first.group, first.index) == (2, 7, 0)
  assert (second.length, second.group, second.index) == (1, 8, 1)
  assert len(trace) == 2 and trace.longest == 2 and trace.block == 1


def test_empty_streams_and_rows_are_refused():
  with pytest.raises(ValueError, match="x has no requests"):
    token_trace("x", [], [])
  with pytest.raises(ValueError, match="x: request 1 has no tokens"):
    token_trace("x", [np.array([1]), np.array([], int)], [0, 0])
  assert len(Trace("nothing", ())) == 0


@pytest.mark.parametrize(
  "a, b, common",
  [
    ([1, 2, 3], [1, 2, 3], 3),
    ([1, 2, 3], [1, 2], 2),
    ([1, 2, 3], [4, 2, 3], 0),
    ([1, 2, 3], [1, 2, 9, 9], 2),
    ([], [1], 0),
  ],
)
def test_common_prefix(a, b, common):
  assert common_prefix(np.array(a), np.array(b)) == common
  assert common_prefix(np.array(b), np.array(a)) == common


@pytest.mark.parametrize("bad", [-1, 2**31, 2**40])
def test_ids_that_int32_would_wrap_are_refused(bad):
  rows = [np.array([1, 2]), np.array([3, bad])]
  with pytest.raises(ValueError, match=f"t: request 1: token ids .* got {bad}"):
    token_trace("t", rows, [0, 0])
