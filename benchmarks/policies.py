"""Policies with K states in all, against what no policy can exceed.

    python -m benchmarks.policies [--trace=FILE@K,K,... ...]
        [--bytes=FILE@SIZE,SIZE,... ...] [--output=FILE.json] [--plots=FOLDER]

With `--bytes` it replays the traces that are named with so many bytes for
states and pages of Qwen3.5-0.8B in float32, and nothing else. Otherwise it
replays the streams of `workloads.adversarial_streams` and the traces that are
named (`FILE:N@K` takes the first N requests), and tells what two tenants in
turn get and what a change of regime costs. `--plots` draws a picture of every
stream that is replayed with several capacities.
"""

from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import (
  command_line,
  policy_bytes,
  policy_plots,
  policy_table,
)
from benchmarks.record import write_result
from sparse_prefix_jax import extras
from sparse_prefix_jax.writable import check_writable

_MODEL = "qwen3_5_0_8b", "float32"
_TRACE = flags.DEFINE_multi_string(
  "trace", [], "A Mooncake trace, and numbers of states: FILE@K,K,..."
)
_BYTES = flags.DEFINE_multi_string(
  "bytes", [], "A Mooncake trace, and capacities: FILE@0.5GiB,2GiB,..."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")
_PLOTS = flags.DEFINE_string("plots", None, "Folder for a picture per stream.")


def main(argv: list[str]) -> None:
  """Replays, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    cases = [policy_table.parse_case(text) for text in _TRACE.value]
    sized = [policy_bytes.parse_bytes_case(text) for text in _BYTES.value]
    for case in sized:
      policy_bytes.check_capacities(case, *_MODEL)
    command_line.writable(_OUTPUT)
    if _PLOTS.value:
      check_writable(Path(_PLOTS.value) / "policies.png")
      extras.optional("matplotlib.figure", "plot")
  if sized:
    _with_bytes(sized)
    return
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
  _draw(rows, "policies")
  if _OUTPUT.value:
    write_result(
      _OUTPUT.value,
      {"rows": rows, "tenants": tenants, "changed_regime": changes},
    )


def _with_bytes(cases: list[policy_bytes.BytesCase]) -> None:
  """Replays, prints and keeps what so many bytes save."""
  rows = []
  for case in cases:
    found = policy_bytes.rows_of_bytes(case, *_MODEL)
    for row in found:
      print(policy_bytes.bytes_line(row), flush=True)
      rows.append(row)
  _draw(rows, "policies_bytes")
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


def _draw(rows: list[dict[str, Any]], prefix: str) -> None:
  """Draws what was replayed, where a folder for it was named."""
  if _PLOTS.value:
    policy_plots.plot_streams(rows, _PLOTS.value, prefix=prefix)


if __name__ == "__main__":
  app.run(main)
