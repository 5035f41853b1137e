"""Plans: packed as the kernels take them, cut at the rungs, or refused."""

import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO
from sparse_prefix_jax.runtime.plan import (
  Segment,
  build_plan,
  page_table,
  rungs,
)
from tests.models_for_tests import small_config

CONFIG = small_config()
C, SLOTS, PAGES, SPILL = 16, 20, 40, 19


def segment(length, **changes):
  tokens = np.arange(1, length + 1, dtype=np.int32)
  fields = {"start": 0, "read": ZERO, "writes": {}, "spill": SPILL} | changes
  chunks = fields["start"] // C + -(-length // C)
  return Segment(tokens=tokens, **({"pages": range(chunks)} | fields))


def build(*segments, slots=SLOTS, pages=PAGES):
  return build_plan(CONFIG, segments, slots=slots, pages=pages)


def a_plan():
  """Three chunks of one request, then two of another that resumes."""
  return build(
    segment(40, writes={16: 3, 32: 4, 40: 5}),
    segment(32, start=32, read=7, writes={64: 7}, spill=18, pages=[0, 1, 4, 5]),
  )


def changed(**entries):
  """`a_plan` with single entries replaced, as (index, value) by field."""
  arrays = {}
  for name, (index, value) in entries.items():
    arrays[name] = getattr(a_plan(), name).copy()
    arrays[name][index] = value
  return dataclasses.replace(a_plan(), **arrays)


def test_segments_are_packed_in_order():
  plan = a_plan()
  np.testing.assert_array_equal(plan.read, [ZERO, CARRY, CARRY, 7, CARRY])
  np.testing.assert_array_equal(plan.write, [3, 4, 5, NONE, 7])
  np.testing.assert_array_equal(plan.length, [16, 16, 8, 16, 16])
  np.testing.assert_array_equal(plan.position, [0, 16, 32, 32, 48])
  np.testing.assert_array_equal(plan.request, [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(plan.spill, [SPILL, 18])
  np.testing.assert_array_equal(plan.tokens[2], [*range(33, 41), *[0] * 8])
  np.testing.assert_array_equal(plan.tokens[3:].reshape(-1), range(1, 33))
  np.testing.assert_array_equal(plan.page_table[0, :3], [0, 1, 2])
  np.testing.assert_array_equal(plan.page_table[1, :4], [0, 1, 4, 5])


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"read": (0, SLOTS)}, "read holds 20; .* a slot, ZERO or CARRY"),
    ({"read": (0, -3)}, "read holds -3"),
    ({"write": (1, SLOTS)}, "write holds 20; .* a slot or NONE"),
    ({"write": (1, -2)}, "write holds -2"),
    ({"length": (2, 17)}, "length holds 17; .* 0 to 16"),
    ({"length": (2, -1)}, "length holds -1"),
    ({"page_table": ((0, 2), PAGES)}, "page_table holds 40; .* a page"),
    ({"page_table": ((1, 0), -1)}, "page_table holds -1"),
    ({"position": (3, 40)}, "position must be a multiple of 16"),
    ({"position": (3, -16)}, "position holds -16; .* below 256"),
    ({"position": (3, 256)}, "position holds 256; .* below 256"),
    ({"request": (4, 2)}, "request holds 2; .* a row of page_table"),
    ({"request": (0, -1)}, "request holds -1; .* a row of page_table"),
    ({"length": (1, 0)}, "an inactive chunk stands before an active one"),
    ({"read": (0, CARRY)}, "read of chunk 0 is CARRY, but"),
    ({"read": (3, CARRY)}, "read of chunk 3 is CARRY, but"),
    ({"read": (1, ZERO)}, "in order, all but the last full, and read CARRY"),
    ({"read": (4, 9)}, "in order, all but the last full, and read CARRY"),
    ({"length": (0, 15)}, "in order, all but the last full"),
    ({"position": (1, 32)}, "in order, all but the last full"),
    ({"position": (4, 16)}, "in order, all but the last full"),
    (
      {"request": (1, 1), "read": (slice(1, 3), ZERO)},
      "the chunks of a request must stand together",
    ),
    ({"write": (3, 4)}, "write names a slot twice"),
    ({"write": (4, 3)}, "write names a slot twice"),
    ({"write": (1, 7)}, "write names a slot twice"),
    ({"read": (3, 4)}, "slot 4 is written by request 0 and read by request 1"),
    ({"read": (0, 7)}, "slot 7 is written by request 1 and read by request 0"),
    ({"spill": (0, SLOTS)}, "spill of request 0 is 20; it must be a slot"),
    ({"spill": (1, NONE)}, "spill of request 1 is -3; it must be a slot"),
    ({"spill": (0, 3)}, "spill slot 3 of request 0 is also captured to"),
    ({"spill": (1, 5)}, "spill slot 5 of request 1 is also captured to"),
    (
      {"spill": (0, 7), "write": (4, NONE)},
      "spill slot 7 of request 0 .* read by another request",
    ),
    ({"page_table": ((1, 3), 2)}, "two chunks write the same page"),
    ({"page_table": ((0, 1), 0)}, "two chunks write the same page"),
  ],
)
def test_a_broken_rule_is_refused(entries, message):
  with pytest.raises(ValueError, match=f"^plan: .*{message}") as refused:
    changed(**entries)
  assert str(refused.value).endswith(".")
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  ("name", "index", "value"),
  [
    ("read", 0, 5),  # a request may write the slot that it reads
    ("spill", 0, 5),  # its end: nothing is carried after it
    ("spill", 1, 7),  # the slot that it began from
    ("page_table", (1, 0), 1),  # pages of a prefix are shared
    ("length", 4, 0),  # inactive at the end
  ],
)
def test_what_no_rule_forbids_is_taken(name, index, value):
  assert getattr(changed(**{name: (index, value)}), name)[index] == value


@pytest.mark.parametrize(
  ("length", "changes", "message"),
  [
    (0, {}, "segment 1 has no tokens"),
    (33, {"pages": [8, 9]}, "segment 1 has 2 pages; its 33 tokens need 3"),
    (
      1,
      {"start": 32, "pages": [0, 1]},
      "segment 1 has 2 pages; its 33 tokens need 3",
    ),
    (40, {"writes": {20: 1}}, "segment 1 writes at 20; .* or the end, 40"),
    (40, {"writes": {48: 1}}, "segment 1 writes at 48; .* or the end, 40"),
    (40, {"writes": {41: 1}}, "segment 1 writes at 41; .* or the end, 40"),
  ],
)
def test_a_segment_that_packing_would_lose_from_is_refused(
  length, changes, message
):
  with pytest.raises(ValueError, match=message):
    build(segment(1, pages=[7]), segment(length, **changes))


def test_what_is_asked_for_before_the_start_is_held_already():
  plan = build(segment(20, start=32, read=1, writes={0: 5, 32: 5, 52: 2}))
  np.testing.assert_array_equal(plan.write, [NONE, 2])


def test_groups_are_cut_at_the_rungs_and_the_carry_goes_through_a_slot():
  plan = build(
    segment(7 * C + 3, writes={3 * C: 2, 4 * C: 1, 7 * C + 3: 0}),
    segment(6 * C, spill=18, pages=range(10, 16)),
  )
  pieces = list(plan.groups((4,)))
  assert [(p.start, p.stop) for p, _ in pieces] == [
    (0, 4),
    (4, 8),
    (8, 12),
    (12, 14),
  ]
  reads = [np.asarray(group.chunks.read).tolist() for _, group in pieces]
  writes = [np.asarray(group.chunks.write).tolist() for _, group in pieces]
  # A state captured at the cut is where the next program goes on from.
  assert reads[0] == [ZERO, CARRY, CARRY, CARRY]
  assert writes[0] == [NONE, NONE, 2, 1]
  assert reads[1] == [1, CARRY, CARRY, CARRY]
  assert writes[1] == [NONE, NONE, NONE, 0]
  # Otherwise the spill slot of the request that is cut carries it over.
  assert reads[2] == [ZERO, CARRY, CARRY, CARRY]
  assert writes[2] == [NONE, NONE, NONE, 18]
  assert reads[3][:2] == [18, CARRY]
  assert writes[3] == [NONE] * 4
  last = pieces[3][1]
  np.testing.assert_array_equal(last.chunks.length, [16, 16, 0, 0])
  np.testing.assert_array_equal(last.chunks.position, [64, 80, 0, 0])
  assert not np.asarray(last.tokens)[2:].any()


def test_every_chunk_of_a_group_has_its_own_row_of_the_page_table():
  plan = build(segment(20), segment(50, pages=[9, 8, 7, 6]))
  (_, group), (_, rest) = plan.groups((4,))
  table = np.asarray(group.page_table)
  rows = table[np.asarray(group.chunks.request)]
  np.testing.assert_array_equal(rows[:2, :2], [[0, 1]] * 2)
  np.testing.assert_array_equal(rows[2:, :4], [[9, 8, 7, 6]] * 2)
  row = np.asarray(rest.page_table)[np.asarray(rest.chunks.request)[0]]
  np.testing.assert_array_equal(row[:4], [9, 8, 7, 6])


@hypothesis.given(
  lengths=st.lists(st.integers(1, 100), min_size=1, max_size=5),
  ladder=st.sampled_from([(1,), (4,), (1, 2, 4), (4, 8), (3, 5, 16)]),
)
def test_groups_hold_every_chunk_once(lengths, ladder):
  segments = [
    segment(t, spill=i, writes={t: 10 + i}, pages=range(8 * i, 8 * i + 7))
    for i, t in enumerate(lengths)
  ]
  plan = build(*segments)
  tokens, positions = [], []
  for chunks, group in plan.groups(ladder):
    assert group.tokens.shape[0] in ladder
    real = np.asarray(group.chunks.length) > 0
    assert real.tolist() == [i < len(chunks) for i in range(real.size)]
    tokens.append(np.asarray(group.tokens)[real])
    positions.append(np.asarray(group.chunks.position)[real])
    assert np.asarray(group.chunks.read)[0] != CARRY
    carried = np.asarray(group.chunks.read)[1:][real[1:]] == CARRY
    inside = plan.read[chunks.start + 1 : chunks.stop] == CARRY
    np.testing.assert_array_equal(carried, inside)
  np.testing.assert_array_equal(np.concatenate(tokens), plan.tokens)
  np.testing.assert_array_equal(np.concatenate(positions), plan.position)


@hypothesis.given(
  chunks=st.integers(0, 200),
  ladder=st.sets(st.integers(1, 32), min_size=1, max_size=5),
)
def test_rungs_hold_the_chunks_without_much_waste(chunks, ladder):
  ladder = sorted(ladder)
  sizes = list(rungs(chunks, ladder))
  assert set(sizes) <= set(ladder)
  assert sum(sizes) >= chunks
  if chunks:
    before = sum(sizes[:-1])
    assert before < chunks  # no program without work
    wasted = sum(sizes) - chunks
    assert 4 * wasted <= sizes[-1] or sizes[-1] == ladder[0]


def test_page_table_is_as_wide_as_the_longest_sequence():
  table = page_table(CONFIG, [[5, 3], []])
  chex.assert_shape(table, (2, 16))  # 256 tokens
  chex.assert_type(table, np.int32)
  np.testing.assert_array_equal(table[0, :2], [5, 3])
  assert not table[1].any()
  odd = small_config(max_length=150)
  table = page_table(odd, [[1]])
  chex.assert_shape(table, (1, 16))  # 10 pages, in blocks of 8
