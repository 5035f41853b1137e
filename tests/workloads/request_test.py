import numpy as np
import pytest

from sparse_prefix_jax.workloads import (
  Trace,
  TraceRequest,
  common_prefix,
  token_trace,
)

pytestmark = pytest.mark.usefixtures("unchecked_types")


def test_token_trace_keeps_rows_and_groups():
  trace = token_trace("t", [np.array([3, 1]), [2]], [7, 8])
  first, second = trace.requests
  assert first.tokens.tolist() == [3, 1] and first.ids.dtype == np.int32
  assert (first.length, first.group, first.index) == (2, 7, 0)
  assert (second.length, second.group, second.index) == (1, 8, 1)
  assert len(trace) == 2 and trace.longest == 2 and trace.block == 1
  assert first.answer == 0 and first.prompt.tolist() == [3, 1]


def test_an_answer_is_the_end_of_a_row():
  trace = token_trace("t", [np.array([3, 1, 4]), [2]], [0, 0], [2, 0])
  first, second = trace.requests
  assert first.ids.tolist() == [3, 1, 4] and first.prompt.tolist() == [3]
  assert (first.length, first.prompt_length, first.answer) == (3, 1, 2)
  assert (second.length, second.prompt_length, second.answer) == (1, 1, 0)
  assert trace.longest == 3
  # Hashed blocks have prompts only: the partial block has no id.
  blocks = TraceRequest(np.array([5], np.int32), length=700)
  assert blocks.prompt.tolist() == [5] and blocks.prompt_length == 700


@pytest.mark.parametrize(
  "groups, answers, sentence",
  [
    ([0], None, "groups must have one value for each of 2 rows, got 1"),
    ([0, 0], [0], "answers must have one value for each of 2 rows, got 1"),
    ([0, 0], [2, 0], "the answer of request 0 must have 0 to 1 of its 2 tok"),
    ([0, 0], [0, -1], "the answer of request 1 must have 0 to 0 of its 1 tok"),
    ([0, 0.5], None, "the group of request 1 must be an integer .* got 0.5"),
    ([np.nan, 0], None, "the group of request 0 must be an integer .* got nan"),
    ([0, True], None, "the group of request 1 must be an integer .* got True"),
    ([0, 2**63], None, "the group of request 1 must be an integer of 64 bits"),
    ([0, 0], [1.0, 0], "the answer of request 0 must be an integer .* got 1.0"),
  ],
)
def test_groups_and_answers_are_checked(groups, answers, sentence):
  rows = [np.array([1, 2]), np.array([3])]
  with pytest.raises(ValueError, match=f"^t: {sentence}"):
    token_trace("t", rows, groups, answers)


def test_empty_streams_and_rows_are_refused():
  with pytest.raises(ValueError, match="x has no requests"):
    token_trace("x", [], [])
  for empty in (np.array([], int), [], np.zeros((0,))):
    with pytest.raises(ValueError, match="x: request 1 has no tokens"):
      token_trace("x", [np.array([1]), empty], [0, 0])
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


@pytest.mark.parametrize(
  "bad, told",
  [
    ([1.5, 2.0], r"float64 \(2,\)"),
    ([1.0, 2.0], r"float64 \(2,\)"),
    ([1, np.nan], r"float64 \(2,\)"),
    ([True, False], r"bool \(2,\)"),
    ([2**70], r"object \(1,\)"),
    (["1", "2"], r"<U1 \(2,\)"),
    (np.array([1, 2], "m8[s]"), r"timedelta64\[s\] \(2,\)"),
    (np.array(["2026-01-01"], "M8[D]"), r"datetime64\[D\] \(1,\)"),
    ([[1, 2]], r"int64 \(1, 2\)"),
    (3, r"int64 \(\)"),
    (None, r"object \(\)"),
    ("text", r"<U4 \(\)"),
  ],
)
def test_what_is_no_vector_of_integers_is_refused(bad, told):
  sentence = (
    f"^t: request 1: token ids must be a vector of integers, got {told}"
  )
  with pytest.raises(ValueError, match=sentence):
    token_trace("t", [np.array([1]), bad], [0, 0])


def test_ragged_and_masked_rows_are_refused():
  with pytest.raises(ValueError, match="t: request 0: token ids are no array:"):
    token_trace("t", [[[1], [2, 3]]], [0])
  masked = np.ma.masked_array([1, 2], [False, True])
  with pytest.raises(ValueError, match=r"request 0: .* not be a masked array"):
    token_trace("t", [masked], [0])


def test_a_stream_without_its_answers():
  rows = [np.array([1, 2, 3], np.int32), np.array([4, 5], np.int32)]
  trace = Trace(
    "t", tuple(TraceRequest(r, r.size, answer=r.size - 1) for r in rows)
  )
  bare = trace.prompts()
  assert [r.ids.tolist() for r in bare.requests] == [[1], [4]]
  assert [(r.length, r.answer) for r in bare.requests] == [(1, 0), (1, 0)]
  assert bare.prompts() is bare
