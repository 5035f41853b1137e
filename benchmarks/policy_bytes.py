"""What policies save with so many bytes in all, of states and of pages.

The replay is that of the store: what a server with this capacity would save.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.policy_table import PLACED, parse_trace
from sparse_prefix_jax import preset
from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.evaluation import Capacity, ModelSizes, simulate
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.workloads import Trace

SHARES: tuple[str | None, ...] = (None, "chosen")
"""A capacity that is not divided, and one divided as the requests say."""


class BytesCase(NamedTuple):
  """A stream, and with how many bytes it is replayed."""

  trace: Trace
  capacities: tuple[int, ...]


def parse_bytes_case(text: str) -> BytesCase:
  """Reads `FILE@SIZE,SIZE,...` or `FILE:N@SIZE,...` for its first N requests.

  Raises:
    ValueError: The text is of another form, or the file no trace.
    OSError: The file cannot be read.
  """
  where, _, sizes = text.rpartition("@")
  if not where:
    raise ValueError(f"a trace must be FILE@SIZE,SIZE,..., got {text}")
  amounts = [parse_bytes(size, name="capacity") for size in sizes.split(",")]
  return BytesCase(parse_trace(where), tuple(amounts))


def rows_of_bytes(
  case: BytesCase, model: str, dtype: str
) -> Iterator[dict[str, Any]]:
  """Replays every policy with every capacity, undivided and divided.

  Args:
    case: What to replay.
    model: Name of the preset that gives the bytes of a state and of a page.
    dtype: Of its keys and values.

  Yields:
    A row per capacity and division: the percentage of the prompt tokens that
    each policy saves.
  """
  sizes = ModelSizes.of_model(preset(model, dtype=dtype), case.trace.block)
  for amount, share in itertools.product(case.capacities, SHARES):
    yield {
      "stream": case.trace.name,
      "requests": len(case.trace),
      "capacity_bytes": amount,
      "state_share": share,
      "percent_of_prompt_tokens": _saved(case.trace, sizes, amount, share),
    }


def _saved(
  trace: Trace, sizes: ModelSizes, amount: int, share: str | None
) -> dict[str, float]:
  """Percent of the prompt tokens that each policy saves."""
  saved = {}
  for name, budget in (*PLACED, ("adaptive", None)):
    report = simulate(
      trace,
      PlacementPolicy(name, budget, trace.block),
      Capacity("bytes", amount),
      sizes=sizes,
      state_share=share,
    )
    percent = 100 * report.tokens_saved / report.tokens_total
    saved[name if budget is None else f"{name}:{budget}"] = round(percent, 2)
  return saved


def bytes_line(row: dict[str, Any]) -> str:
  """A row as it is printed."""
  saved = "  ".join(
    f"{name} {percent}"
    for name, percent in row["percent_of_prompt_tokens"].items()
  )
  return (
    f"{row['stream']} {row['capacity_bytes'] / 2**30:g} GiB"
    f" {row['state_share'] or 'undivided'}: {saved}"
  )
