import gc
import tracemalloc

import numpy as np
import pytest

from sparse_prefix_jax.placement.worth import Adaptive, Freed
from tests.placement.worth import reference, streams

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")


def served(policy, keys, slots):
  """What the anchors' replay does with one prompt."""
  visit = policy.observe(keys)
  rows = policy.candidates(visit, roomy=policy.held_count < slots)
  policy.hold(rows[-slots:])
  while policy.held_count > slots:
    policy.release(policy.choose())
  return visit, rows


@pytest.mark.parametrize("slots", [1, 4, 20])
@pytest.mark.parametrize(
  "stream",
  [
    streams.conversations,
    streams.letters,
    streams.examples,
    streams.changed,
  ],
)
def test_decides_as_the_specification_does(stream, slots):
  """After every request the same prefixes are held."""
  ours, plain = Adaptive(block=512), reference.Policy(slots, 512)
  prefixes = {}
  for step, keys in enumerate(stream(slots)):
    visit, rows = served(ours, keys, slots)
    assert visit.resumed == plain.serve(keys)
    prefixes |= {row: keys[: ours.depth_of(row)] for row in rows}
    held = {prefix for row, prefix in prefixes.items() if ours.is_held(row)}
    assert held == plain.held, step
  others = ["changed", "returned"] if stream is streams.changed else []
  assert plain.happened == others


def with_the_last_ends(prompts, slots):
  """Blocks that are spared where the ends of the last prompts are held."""
  held, spared = {}, 0
  for keys in prompts:
    ends = (k for k in range(len(keys), 0, -1) if keys[:k] in held)
    spared += next(ends, 0)
    held.pop(keys, None)
    held[keys] = None
    if len(held) > slots:
      del held[next(iter(held))]
  return spared


def test_a_turn_that_was_gone_on_from_is_not_one_that_is_asked_again():
  """What was regenerated will be so no more once the talk has gone on."""
  prompts, policy = streams.regenerated(1), Adaptive(block=512)
  spared = sum(served(policy, keys, 12)[0].resumed for keys in prompts)
  assert spared > 1.05 * with_the_last_ends(prompts, 12)


def test_two_policies_with_the_same_calls_decide_alike():
  def decisions():
    policy = Adaptive(block=64)
    return [served(policy, k, 5)[1] for k in streams.conversations(9)]

  assert decisions() == decisions()


def test_a_visit_tells_how_far_a_prompt_is_known():
  policy = Adaptive(block=64)
  first, _ = served(policy, "abcd", 9)
  again, rows = served(policy, "abxy", 9)
  assert (first.matched, first.resumed) == (0, 0)
  assert (again.matched, again.resumed) == (2, 2)
  assert policy.depth_of(again.row) == 2
  assert [policy.depth_of(row) for row in rows] == [4]
  assert served(policy, "", 9)[0].matched == 0


def test_pinned_states_are_no_victims():
  policy = Adaptive(block=64)
  _, rows = served(policy, "abcdefgh", 9)
  free = policy.choose()
  assert policy.choose(pinned=[free]) != free
  assert policy.choose(pinned=rows[:-1]) == rows[-1]
  with pytest.raises(ValueError, match=f"{len(rows)} are held and {len(rows)}"):
    policy.choose(pinned=rows)
  assert policy.held_count == len(rows)


def test_a_state_whose_pages_go_with_it_is_worth_less_per_byte():
  """Of two ends that nothing distinguishes, the one with a way of its own."""
  policy = Adaptive(block=64)
  rows = []
  for keys in ("abcdefgh", "a2345678"):
    visit = policy.observe(keys)
    rows.append(policy.candidates(visit)[-1])
  policy.hold([*rows, policy.candidates(policy.observe("abcdefghijkl"))[-1]])
  assert policy.choose(freed=Freed(state=1, block=1000)) != rows[0]


def test_costs_replace_tokens():
  """With a cost of nothing beyond depth 4, deeper states spare nothing."""
  policy = Adaptive(block=64, cost=lambda depth: float(min(depth, 4)))
  _, rows = served(policy, "abcdefgh", 9)
  by_depth = {policy.depth_of(row): row for row in rows}
  assert policy.choose() == by_depth[8]


def test_prompts_of_a_wave_are_observed_first_and_placed_then():
  policy = Adaptive(block=64)
  wave = ["abcdef", "abcxyz", "abcdef"]
  visits = [policy.observe(keys) for keys in wave]
  rows = [policy.candidates(visit) for visit in visits]
  depths = [[policy.depth_of(row) for row in of_one] for of_one in rows]
  assert [visit.matched for visit in visits] == [0, 0, 0]
  assert depths == [[6], [3, 6], [3, 6]]
  assert rows[2] == (rows[1][0], rows[0][0])


def test_anchors_are_branches():
  policy = Adaptive(block=64)
  rows = policy.candidates(policy.observe("abcdef"), anchors=[2, 5])
  assert [policy.depth_of(row) for row in rows] == [2, 5, 6]


def test_memory_has_a_bound_and_what_is_held_stays():
  fixed = Adaptive(block=64).remembered_bytes
  policy = Adaptive(block=64, memory_bytes=60_000)
  policy.hold(policy.candidates(policy.observe(["held", 1, 2])))
  for step in range(600):
    policy.candidates(policy.observe([step, step, step]))
  assert policy.remembered_bytes < fixed + 140_000
  assert policy.observe([0, 0, 0]).matched == 0
  assert policy.observe([599, 599, 599]).matched == 3
  assert policy.observe(["held", 1, 2]).resumed == 3


@pytest.mark.parametrize("fault", [{"block": 0}, {"memory_bytes": 0}])
def test_bad_input_is_refused(fault):
  with pytest.raises(ValueError, match="must be at least 1, got"):
    Adaptive(**{"block": 64} | fault)


@pytest.mark.parametrize("name", ["block", "memory_bytes"])
def test_sizes_that_are_no_integers_are_refused(name, unchecked_types):
  with pytest.raises(ValueError, match=f"{name} must be an integer, got 1.5"):
    Adaptive(**{"block": 64} | {name: 1.5})


def test_what_cannot_be_is_refused_and_changes_nothing():
  policy = Adaptive(block=64)
  visit = policy.observe("abcd")
  for anchor in (0, 5):
    with pytest.raises(ValueError, match=f"from 1 to 4 blocks, got {anchor}"):
      policy.candidates(visit, anchors=[anchor])
  rows = policy.candidates(visit, anchors=[2])
  for bad in (0, -1, 99):
    with pytest.raises(ValueError, match=f"row {bad} is no candidate"):
      policy.hold([rows[0], bad])
    with pytest.raises(ValueError, match=f"row {bad} holds no state"):
      policy.release(bad)
  with pytest.raises(ValueError, match="rows must differ from each other"):
    policy.hold([rows[0], rows[0]])
  assert policy.held_count == 0 and not any(map(policy.is_held, rows))
  policy.hold(rows[:1])
  with pytest.raises(ValueError, match=f"row {rows[0]} is no candidate with"):
    policy.hold(rows[:1])
  with pytest.raises(ValueError, match=f"row {rows[1]} holds no state"):
    policy.release(rows[1])
  assert policy.held_count == 1


def test_a_path_that_goes_on_is_learned_and_not_asked_for():
  """The end of an answer counts as one of its prompt, at the same step."""
  policy = Adaptive(block=64)
  served(policy, "ab", 9)
  visit, rows = served(policy, "abcd", 9)
  end = policy.extend("abcdef")
  table = policy._table
  assert (policy.depth_of(end), table.passes[end]) == (6, 0)
  assert (table.turn[end], table.gap[end]) == (visit.turn, visit.gap)
  assert table.turn[end] == table.turn[rows[-1]] == 1
  assert not policy.is_held(end)
  policy.hold([end])
  again = policy.observe("abcdexyz")
  assert (again.matched, again.resumed) == (5, 4)
  assert policy.observe("abcdefgh").resumed == 6


def test_where_an_answer_leaves_another_is_a_branch():
  policy = Adaptive(block=64)
  served(policy, "ab", 9)
  policy.extend("abcdef")
  end = policy.extend("abcxyz")
  branch = policy.row_of("abc")
  assert policy.depth_of(end) == 6 and policy.depth_of(branch) == 3
  assert [policy._table.kind[row] for row in (branch, end)] == [2, 1]
  assert policy.row_of("abcd") is policy.row_of("abcdefg") is None


def test_an_end_within_what_is_known_leaves_lengths_as_they_are():
  """Offsets are counted from the last prompt that went there."""
  policy = Adaptive(block=64)
  served(policy, "abcdefgh", 9)
  end = policy.extend("abcd")
  assert policy.extend("abcd") == end == policy.row_of("abcd")
  assert policy._table.length[end] == 8
  offsets = policy._learner._left_at.counts
  policy.observe("abcdxy")
  assert np.flatnonzero(offsets).tolist() == [4]


def test_an_end_needs_a_block_and_known_paths_are_found():
  policy = Adaptive(block=64)
  with pytest.raises(ValueError, match="keys must name at least one block"):
    policy.extend("")
  assert policy.row_of("") is None
  assert policy.extend("ab") == policy.row_of("ab")


def test_held_rows_stand_in_the_order_of_worth():
  policy = Adaptive(block=64)
  for keys in ("abcdefgh", "abxy", "abcdefgh", "qr", "qrst"):
    served(policy, keys, 99)
  order = list(policy.held_rows)
  assert len(order) == policy.held_count > 4
  assert policy.choose() == order[0]
  policy.release(order[2])
  assert set(policy.held_rows) == {*order} - {order[2]}


@pytest.mark.parametrize(
  "blocks", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5)), 200]
)
def test_memory_is_counted_as_it_is_taken(blocks):
  """At least nine tenths of what Python's allocator says, and no more than
  a fifth beyond it."""
  random, prompts = np.random.default_rng(0), 40_000 // max(blocks, 20)
  gc.collect()
  tracemalloc.start()
  before = tracemalloc.get_traced_memory()[0]
  policy = Adaptive(block=64)
  for _ in range(prompts):
    keys = [hash(random.bytes(64)) for _ in range(blocks)]
    policy.hold(policy.candidates(policy.observe(keys)))
    while policy.held_count > 50:
      policy.release(policy.choose())
  del keys
  gc.collect()
  taken = tracemalloc.get_traced_memory()[0] - before
  tracemalloc.stop()
  assert 0.9 * taken <= policy.remembered_bytes <= 1.2 * taken


def test_expects_to_lose_what_lies_below_the_deepest_held_above():
  policy, expected = Adaptive(block=64), []
  for keys in streams.conversations(3):
    table, total = policy._table, 0.0
    for row in table.current_rows:
      holder = row
      while holder and not table.held[holder]:
        holder = table.parent[holder]
      blocks = int(table.depth[row] - table.depth[holder])
      total += float(table.demand[row, 0]) * blocks
    assert policy.expected_lost() == pytest.approx(64 * total)
    expected.append(total)
    served(policy, keys, 4)
  assert expected[0] == 0 and max(expected) > 0
