import json

import pytest

from benchmarks import policy_bytes
from benchmarks.policy_bytes import BytesCase
from sparse_prefix_jax.workloads import changed_regime

# Checks of types would take most of the time: they are long replays.
pytestmark = pytest.mark.usefixtures("unchecked_types")


def test_a_row_of_every_capacity():
  trace = changed_regime(before=20, after=20, documents_first=True)
  rows = list(
    policy_bytes.rows_of_bytes(
      BytesCase(trace, (1 << 30,)), "qwen3_5_0_8b", "float32"
    )
  )
  (row,) = rows
  names = ["last fifo", "last", "last branch_lru", "last marconi"]
  names += ["last greedy_dual", "conditional:1", "conditional:2"]
  assert [*row["tokens_saved"]] == [*names, "adaptive", "adaptive divided"]
  bound = row["upper_bound_tokens"]
  assert all(0 <= tokens <= bound for tokens in row["tokens_saved"].values())
  assert row["tokens_saved"]["adaptive"] > 0 and row["refused"] == 0
  assert policy_bytes.bytes_line(row).startswith("changed_regime 1 GiB")
  (line,) = policy_bytes.bytes_table(rows)
  assert line.startswith("| changed_regime | 1 GiB |")


def test_traces_are_named_with_bytes(tmp_path):
  path = tmp_path / "few_blksz_16.jsonl"
  path.write_text(
    json.dumps({"timestamp": 1, "input_length": 32, "hash_ids": [1, 2]})
  )
  case = policy_bytes.parse_bytes_case(f"{path}:1@0.5GiB,2GiB")
  assert case.capacities == (1 << 29, 1 << 31) and len(case.trace) == 1
  with pytest.raises(ValueError, match="must be FILE@SIZE,SIZE"):
    policy_bytes.parse_bytes_case(f"{path}")
  with pytest.raises(ValueError, match="capacity"):
    policy_bytes.parse_bytes_case(f"{path}@much")


def test_a_capacity_that_holds_no_request_is_refused_before_the_replay():
  trace = changed_regime(before=2, after=2, documents_first=True)
  policy_bytes.check_capacities(
    BytesCase(trace, (1 << 30,)), "qwen3_5_0_8b", "float32"
  )
  with pytest.raises(ValueError, match="bytes:1000 is too small for every"):
    policy_bytes.check_capacities(
      BytesCase(trace, (1 << 30, 1000)), "qwen3_5_0_8b", "float32"
    )
