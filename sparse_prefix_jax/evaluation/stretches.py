"""What nobody could save, stretch by stretch of a replay."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from sparse_prefix_jax.evaluation.anchor_rules import tree_paths
from sparse_prefix_jax.evaluation.capacity import parse_capacity
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.report import SimulationReport
from sparse_prefix_jax.placement.bounds import (
  Passage,
  intervals_of,
  upper_bound,
  upper_bound_of_bytes,
)
from sparse_prefix_jax.workloads import Trace, TraceRequest


class Stretch(NamedTuple):
  """Measured requests that follow each other.

  Attributes:
    first: Number of the first one, from 0 for the first that was measured.
    last: Number of the one after the last.
    bound: Prompt tokens of these that no policy saves more than, whatever it
      held when they began; None by the rules of the paper, which have none.
  """

  first: int
  last: int
  bound: int | None


def passages_of(
  requests: Trace, asked: Sequence[TraceRequest], chunk: int
) -> list[Passage]:
  """Returns what a bound of bytes has to know of requests.

  Args:
    requests: The stream.
    asked: Those of its requests that are served.
    chunk: Tokens of a lattice block.
  """
  served = dataclasses.replace(requests, requests=tuple(asked))
  lengths = [request.prompt_length for request in asked]
  return [
    Passage(path.nodes, (length - 1) // chunk, -(-length // chunk))
    for path, length in zip(tree_paths(served, chunk), lengths)
  ]


def bounds_over_time(
  requests: Trace,
  report: SimulationReport,
  *,
  chunk: int,
  sizes: ModelSizes | None = None,
  stretches: int = 20,
) -> list[Stretch]:
  """Cuts a replay into stretches, and bounds what each could save.

  Their bounds add up to at least the bound of the whole replay: each may begin
  with whatever states are best for it.

  Args:
    requests: The stream.
    report: Of its replay.
    chunk: Tokens of a lattice block, as in the replay.
    sizes: Bytes of a state and of a page; needed for a capacity in bytes.
    stretches: How many there are, or one for each request if these are fewer.

  Raises:
    ValueError: If there are no stretches, or no sizes for bytes.

  >>> from sparse_prefix_jax.evaluation import Capacity, simulate
  >>> from sparse_prefix_jax.placement import PlacementPolicy
  >>> from sparse_prefix_jax.workloads import synthetic_stream
  >>> stream = synthetic_stream([0, 0, 1], requests=40, length=256)
  >>> policy = PlacementPolicy("last")
  >>> report = simulate(stream, policy, Capacity("states", 4))
  >>> bounds_over_time(stream, report, chunk=64, stretches=1)
  [Stretch(first=0, last=40, bound=4992)]
  """
  if stretches < 1:
    raise ValueError(f"stretches must be at least 1, got {stretches}")
  count = min(stretches, report.requests)
  edges = [report.requests * i // count for i in range(count + 1)]
  kind = parse_capacity(report.capacity).kind
  if kind == "sequences":
    bounds = [None] * count
  elif kind == "states":
    bounds = _of_states(requests, report, edges, chunk)
  else:
    if sizes is None:
      raise ValueError("a capacity in bytes needs sizes of a state and a page")
    bounds = _of_bytes(requests, report, edges, chunk, sizes)
  return [*map(Stretch, edges, edges[1:], bounds)]


def _of_states(
  requests: Trace, report: SimulationReport, edges: Sequence[int], chunk: int
) -> list[int]:
  """By as many states, beside which all is free."""
  paths = tree_paths(requests.prompts(), chunk)
  slots, start = parse_capacity(report.capacity).amount, report.warmup_requests
  return [
    chunk
    * upper_bound(
      intervals_of(paths[: start + last], warmup=start + first), slots
    ).blocks
    for first, last in itertools.pairwise(edges)
  ]


def _of_bytes(
  requests: Trace,
  report: SimulationReport,
  edges: Sequence[int],
  chunk: int,
  sizes: ModelSizes,
) -> list[int]:
  """By as many bytes of states and pages; who is refused saves nothing."""
  capacity = parse_capacity(report.capacity).amount
  start = report.warmup_requests
  refused = {
    start + i for i, one in enumerate(report.outcomes) if one.reason is None
  }

  def served(first: int, last: int) -> list[TraceRequest]:
    """Those that fit, of a part of the stream."""
    return [
      one
      for position, one in enumerate(requests.requests[first:last], first)
      if position not in refused
      and 2 * sizes.state_bytes
      + -(-one.prompt_length // chunk) * sizes.page_bytes
      <= capacity
    ]

  before = [len(served(0, start + edge)) for edge in edges]
  passages = passages_of(requests, served(0, start + edges[-1]), chunk)
  return [
    chunk
    * upper_bound_of_bytes(
      passages[:last],
      capacity=capacity,
      state_bytes=sizes.state_bytes,
      page_bytes=sizes.page_bytes,
      warmup=first,
    ).blocks
    for first, last in itertools.pairwise(before)
  ]
