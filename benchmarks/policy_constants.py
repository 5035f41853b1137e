"""Are the constants of `adaptive` fitted to the traces? Each left out in turn.

    python -m benchmarks.policy_constants --trace=FILE@K,... --trace=...
        [--output=FILE.json]

Every constant is halved and doubled. For each trace the variant is taken that
is best on the others, and compared with the constants as they are: if these
were fitted, choosing without a trace would often choose another, and better
where it was chosen than where it was not.
"""

import contextlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from absl import app, flags

from benchmarks import command_line, policy_table
from benchmarks.record import write_result
from sparse_prefix_jax.placement.worth import (
  demand,
  end_offsets,
  fitting,
  regime,
)

_TRACE = flags.DEFINE_multi_string(
  "trace", [], "A Mooncake trace, and numbers of states: FILE@K,K,..."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

AS_IT_IS = "as it is"
CONSTANTS: dict[str, tuple[ModuleType, str]] = {
  "strength": (fitting, "_STRENGTH"),
  "first guess": (fitting, "_FIRST_GUESS"),
  "frailty": (demand, "_FRAILTY"),
  "without an offset": (end_offsets, "_WITHOUT"),
  "lead of another guess": (regime, "_AHEAD"),
}


@contextlib.contextmanager
def variant(name: str) -> Iterator[None]:
  """Changes a constant while it lasts; `AS_IT_IS` changes none."""
  constant, _, factor = name.partition(" x ")
  if name == AS_IT_IS:
    yield
    return
  module, attribute = CONSTANTS[constant]
  changed = getattr(module, attribute) * float(factor)
  with mock.patch.object(module, attribute, changed):
    yield


def variants() -> list[str]:
  """The names of all variants, the constants as they are first."""
  factors = ("0.5", "2")
  return [AS_IT_IS, *(f"{c} x {f}" for c in CONSTANTS for f in factors)]


def left_out(percents: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
  """Chooses for each trace by the others.

  Args:
    percents: By variant and trace, percent of the bound.

  Returns:
    By trace: what was chosen, and its lead over the constants as they are, in
    points, on the trace itself and on those that it was chosen by.
  """
  found = {}
  for trace in percents[AS_IT_IS]:
    gains = {
      name: {t: p - percents[AS_IT_IS][t] for t, p in of_one.items()}
      for name, of_one in percents.items()
    }
    others = {
      name: float(np.mean([g for t, g in of_one.items() if t != trace]))
      for name, of_one in gains.items()
    }
    chosen = max(others, key=others.__getitem__)
    found[trace] = {
      "chosen": chosen,
      "lead_on_the_others": round(others[chosen], 3),
      "lead": round(gains[chosen][trace], 3),
    }
  return found


def main(argv: list[str]) -> None:
  """Replays every variant, prints, and keeps the result where asked for."""
  with command_line.one_sentence(argv):
    cases = [policy_table.parse_case(text) for text in _TRACE.value]
    if len(cases) < 2:
      raise ValueError("--trace is needed at least twice")
    command_line.writable(_OUTPUT)
  percents: dict[str, dict[str, float]] = {}
  for name in variants():
    with variant(name):
      percents[name] = {
        case.trace.name: policy_table.percent(case) for case in cases
      }
    print(name, percents[name], flush=True)
  result = {"percent_of_upper_bound": percents, "left_out": left_out(percents)}
  for trace, row in result["left_out"].items():
    print(trace, row)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
