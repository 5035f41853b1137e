"""`place`: the best positions for a histogram of overlap depths."""

import json
import zipfile
from pathlib import Path

import numpy as np
from absl import flags

from sparse_prefix_jax import placement
from sparse_prefix_jax.workloads.arrays import MAX_BYTES, parse_npy

from .printing import say


def _cost(text: str | None, depths: int) -> np.ndarray:
  """The cumulative cost [depths] that `--cost` names.

  Raises:
    ValueError: an unknown name, or a ratio that is no number >= 0 or too large.
  """
  kind, _, ratio = (text or "linear").partition(":")
  if kind == "linear" and not ratio:
    return placement.linear_cost(depths)
  if kind == "quadratic":
    try:
      number = float(ratio)
    except ValueError:
      number = -1.0
    if 0 <= number < float("inf"):
      return placement.quadratic_cost(depths, number)
  raise ValueError(
    f"--cost must be linear or quadratic:RATIO with RATIO >= 0, got {text}"
  )


def _load_histogram(path: Path) -> np.ndarray:
  """The weights in a NumPy file; `solve_placement` checks their values.

  Raises:
    ValueError: the file is no single NumPy array of plain numbers, or does not
      hold what it declares.
    OSError: it cannot be read.
  """
  with path.open("rb") as file:
    content = file.read(MAX_BYTES + 1)
  if len(content) > MAX_BYTES:
    raise ValueError(f"{path} has more than {MAX_BYTES} bytes")
  if zipfile.is_zipfile(path):
    raise ValueError(f"{path} holds several arrays, a .npy file is needed")
  try:
    return parse_npy(content)
  except ValueError as error:
    raise ValueError(f"{path} is no NumPy array file (.npy): {error}") from None


def place_command(values: flags.FlagValues) -> None:
  """Prints the best positions for a histogram, as JSON.

  Args:
    values: the flags of the command.
  """
  weights = _load_histogram(Path(values.histogram))
  depths = len(np.atleast_1d(weights))
  cost = _cost(values.cost, depths)
  if not isinstance(values.budget, int):
    raise ValueError(f"--budget of place must be whole, got {values.budget}")
  # More positions than depths are of no use, and would take memory.
  budget = min(values.budget, depths)
  placed = placement.solve_placement(weights, budget, cost)
  positions = [p for p in placed.positions.tolist() if p > 0]
  mean = float(placed.expected_recompute)
  say(json.dumps({"positions": positions, "expected_recompute": mean}))
