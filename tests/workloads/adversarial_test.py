import collections

import numpy as np
import pytest

from sparse_prefix_jax.workloads import adversarial_streams, changed_regime

STREAMS = adversarial_streams()


def prompts(trace):
  return [tuple(request.ids.tolist()) for request in trace.requests]


def test_requests_are_whole_blocks_and_a_tail():
  for name, trace in STREAMS.items():
    assert (trace.name, trace.block) == (name, 512)
    for index, request in enumerate(trace.requests):
      assert request.length == 512 * len(request.ids) + 7
      assert (request.index, request.arrival) == (index, float(index))


def test_the_same_seed_gives_the_same_streams():
  again, other = adversarial_streams(), adversarial_streams(seed=2)
  for name, trace in STREAMS.items():
    assert prompts(trace) == prompts(again[name])
  assert prompts(STREAMS["hot_prefix"]) != prompts(other["hot_prefix"])


def test_no_two_streams_share_a_block():
  blocks = [{b for p in prompts(t) for b in p} for t in STREAMS.values()]
  assert sum(map(len, blocks)) == len(set().union(*blocks))


def test_one_prompt_in_twenty_has_the_hot_prefix():
  beginnings = collections.Counter(
    p[:40] for p in prompts(STREAMS["hot_prefix"])
  )
  ((_, asked), (_, next_most)) = beginnings.most_common(2)
  assert 80 <= asked <= 120 and next_most == 1


def test_documents_come_round_and_round():
  rows = prompts(STREAMS["cyclic_scan"])
  assert all(a[:32] == b[:32] for a, b in zip(rows, rows[20:]))
  assert len({row[:32] for row in rows}) == 20
  assert len({row[32] for row in rows}) == len(rows)


def test_conversations_go_on_by_three_blocks_or_begin_anew():
  rows = prompts(STREAMS["regime_change"])
  for part in (rows[:700], rows[1400:]):
    known = {()}
    for row in part:
      assert row[:-3] in known or len(row) == 11
      assert len(row) <= 63
      known.add(row)
  documents = {row[:20] for row in rows[700:1400]}
  assert len(documents) == 12


def test_tenants_take_turns_and_share_nothing():
  trace = STREAMS["two_tenants"]
  groups = [request.group for request in trace.requests]
  assert groups == [0, 1] * 750
  blocks = [
    {b for r in trace.requests[t::2] for b in r.ids.tolist()} for t in (0, 1)
  ]
  assert not blocks[0] & blocks[1]


@pytest.mark.parametrize("documents_first", [True, False])
def test_a_regime_changes_once(documents_first):
  trace = changed_regime(before=60, after=40, documents_first=documents_first)
  groups = np.array([request.group for request in trace.requests])
  assert groups.tolist() == [0] * 60 + [1] * 40
  talks = trace.requests[60:] if documents_first else trace.requests[:60]
  assert {len(r.ids) % 3 for r in talks} == {2}
  rows = prompts(trace)
  assert not {b for r in rows[:60] for b in r} & {
    b for r in rows[60:] for b in r
  }


@pytest.mark.parametrize(
  "fault, sentence",
  [
    ({"before": -1}, "before must be an integer of at least 0"),
    ({"after": 0}, "after must be an integer of at least 1"),
    ({"seed": -1}, "seed must be an integer of at least 0"),
  ],
)
def test_bad_numbers_are_refused(fault, sentence):
  with pytest.raises(ValueError, match=sentence):
    changed_regime(**{"before": 3, "after": 3, "documents_first": True} | fault)
