"""Policies with K states in all, against what no policy can exceed.

    python -m benchmarks.policies [--trace=FILE@K,K,... ...]
        [--output=FILE.json]

Replays the streams of `workloads.adversarial_streams` and the traces that are
named (`FILE:N@K` takes the first N requests), and tells what two tenants in
turn get and what a change of regime costs.
"""

from absl import app, flags

from benchmarks import command_line, policy_table
from benchmarks.record import write_result

_TRACE = flags.DEFINE_multi_string(
  "trace", [], "A Mooncake trace, and numbers of states: FILE@K,K,..."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def main(argv: list[str]) -> None:
  """Replays, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    cases = [policy_table.parse_case(text) for text in _TRACE.value]
    command_line.writable(_OUTPUT)
  rows = []
  for case in [*policy_table.own_cases(), *cases]:
    for row in policy_table.rows_of(case):
      print(policy_table.line(row), flush=True)
      rows.append(row)
  tenants, changes = policy_table.tenants(), policy_table.changes()
  for row in tenants:
    print(f"two tenants, {row['slots']} states: {row['tokens_saved']}")
  for row in changes:
    print(
      f"after {row['first']}, {row['slots']} states:"
      f" {row['of_a_fresh_start']} of a fresh start"
    )
  if _OUTPUT.value:
    write_result(
      _OUTPUT.value,
      {"rows": rows, "tenants": tenants, "changed_regime": changes},
    )


if __name__ == "__main__":
  app.run(main)
