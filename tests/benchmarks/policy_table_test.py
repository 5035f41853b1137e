import json

import pytest

from benchmarks import policy_table
from benchmarks.policy_table import Case
from sparse_prefix_jax import prefill_flops, preset
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.workloads import changed_regime

# Checks of types would take most of the time: they are long replays.
pytestmark = pytest.mark.usefixtures("unchecked_types")


def test_a_row_of_every_number_of_states():
  trace = changed_regime(before=60, after=60, documents_first=True)
  rows = list(policy_table.rows_of(Case(trace, (2, 6))))
  assert [row["slots"] for row in rows] == [2, 6]
  for row in rows:
    names = ["last fifo", "last", "conditional:0.5", "conditional:1 fifo"]
    names += ["conditional:1", "conditional:2", "conditional:4", "adaptive"]
    assert [*row["tokens_saved"]] == names
    bound = row["upper_bound_tokens"]
    assert all(tokens <= bound for tokens in row["tokens_saved"].values())
    assert 0.9 * bound <= row["hindsight_tokens"] <= bound
    percent = 100 * row["tokens_saved"]["adaptive"] / bound
    assert row["percent_of_upper_bound"]["adaptive"] == round(percent, 2)
    assert policy_table.line(row).startswith("changed_regime")
    assert len(policy_table.table([row])[0].split("|")) == 6 + len(names)


def test_operations_count_what_is_quadratic():
  """Of two prompts, sparing the long one is more than half."""
  found = [Outcome(4096, 0, 0), Outcome(8192, 8192, 8192)]
  of = policy_table.figures({"a": found, "b": found[:1]}, bound=16384)
  cost = prefill_flops(preset(policy_table.MODEL))
  short, long = cost.at([4096, 8192])
  assert of["percent_of_flops"] == {
    "a": round(100 * long / (short + long), 2),
    "b": 0,
  }
  assert of["percent_of_flops"]["a"] > 100 * 2 / 3
  assert of["tokens_saved"] == {"a": 8192, "b": 0}
  assert of["percent_of_upper_bound"] == {"a": 50, "b": 0}


def test_tenants_and_changes():
  ((row,)) = policy_table.tenants([4])
  assert len(row["tokens_saved"]) == 2
  assert min(row["tokens_saved"]) >= 0.9 * max(row["tokens_saved"])
  rows = policy_table.changes([4], before=1000, after=500)
  assert [row["first"] for row in rows] == ["documents", "conversations"]
  assert all(row["of_a_fresh_start"] > 0.9 for row in rows)


def test_adversarial_streams_have_their_slots():
  cases = policy_table.own_cases()
  assert {case.trace.name: case.slots for case in cases} == policy_table.SLOTS


def test_traces_are_named_with_numbers_of_states(tmp_path):
  path = tmp_path / "few_blksz_16.jsonl"
  lines = [
    json.dumps({"timestamp": t, "input_length": 32, "hash_ids": [1, t]})
    for t in range(3)
  ]
  path.write_text("\n".join(lines))
  case = policy_table.parse_case(f"{path}@4,8")
  assert (len(case.trace), case.slots) == (3, (4, 8))
  some = policy_table.parse_case(f"{path}:2@4")
  assert len(some.trace) == 2 and some.trace.name == f"{path.name}:2"
  for bad in (f"{path}", f"{path}@", f"{path}@0", f"{path}@4,x"):
    with pytest.raises(ValueError, match="must be FILE@K,K"):
      policy_table.parse_case(bad)
  with pytest.raises(ValueError, match="must stand behind :"):
    policy_table.parse_case(f"{path}:x@4")
