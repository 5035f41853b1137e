"""What a cache is made with: each choice checked, in one sentence."""

from sparse_prefix_jax.cache.divided_capacity import DividedCapacity
from sparse_prefix_jax.cache.index import Eviction, placement_for
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.cost import PrefillCost, prefill_flops
from sparse_prefix_jax.models.sizes import (
  check_kept_bytes,
  page_bytes,
  state_bytes,
)
from sparse_prefix_jax.placement import PlacementPolicy, Planner


def divided_capacity(config: ModelConfig, capacity: int) -> DividedCapacity:
  """Says how a capacity may be divided for a model.

  Args:
    config: Gives the bytes of a state and of a page, and the longest sequence.
    capacity: Bytes for both.

  Raises:
    ValueError: If the model keeps neither.
  """
  check_kept_bytes(config)
  numerics = config.numerics
  return DividedCapacity(
    capacity,
    slot_bytes=state_bytes(config),
    page_bytes=page_bytes(config),
    longest=-(-numerics.max_length // numerics.chunk),
    probed=max(numerics.ladder),
  )


def checked_share(share: float | None, divided: DividedCapacity) -> float:
  """The share to begin with, under which one sequence can run.

  Args:
    share: What was asked for; None leaves it to the requests.
    divided: How the capacity may be divided.

  Raises:
    ValueError: If it is no share, or the capacity is too small.
  """
  first = divided.first if share is None else share
  real = isinstance(first, int | float) and not isinstance(first, bool)
  if not real or not (0 < first < 1 or first == divided.undivided):
    also = "" if divided.undivided is None else f" or {divided.undivided}"
    raise ValueError(
      f"state_share is {brief(share)}; it must be in (0, 1){also}."
    )
  slots, pages = divided.split(first)
  if slots < 2 or pages < 1:
    raise ValueError(
      f"capacity is {divided.capacity} bytes, which holds {max(slots, 0)} "
      f"states and {max(pages, 0)} pages; a sequence needs 2 states of "
      f"{divided.slot_bytes} and 1 page of {divided.page_bytes}."
    )
  return first


def serving_planner(
  policy: PlacementPolicy, config: ModelConfig, cost: PrefillCost | None
) -> Planner:
  """A planner for a server: it plans beside the requests, by the true cost.

  Args:
    policy: What to plan by.
    config: Longest sequence, and the operations of a prefill.
    cost: Measured, or None for the operations.

  Raises:
    ValueError: If the cost is none, or falls.
  """
  if cost is not None and not isinstance(cost, PrefillCost):
    raise ValueError(f"cost must be a PrefillCost, got {brief(cost)}.")
  numerics = config.numerics
  depths = max(2, numerics.max_length // numerics.chunk)
  known = cost or prefill_flops(config)
  planner = Planner(
    policy,
    depths=depths,
    cost=known.cumulative(depths, numerics.chunk),
    serving=True,
  )
  planner.compile()
  return planner


def checked_policy(
  placement: PlacementPolicy | str | None, chunk: int, eviction: Eviction | None
) -> PlacementPolicy:
  """The policy of that name, on the lattice of a model.

  Args:
    placement: A policy, or a name with its budget, such as "conditional:1";
      None leaves it to the rule of eviction.
    chunk: Tokens of a chunk of the model, c.
    eviction: The rule that was asked for, or None.

  Raises:
    ValueError: If it is neither, or of another lattice.
  """
  if placement is None:
    placement = placement_for(eviction)
  if isinstance(placement, str):
    name, _, budget = placement.partition(":")
    placement = PlacementPolicy(name, _number(budget), chunk=chunk)
  if not isinstance(placement, PlacementPolicy):
    raise ValueError(
      "placement must be a PlacementPolicy or the name of one, got "
      f"{brief(placement)}; `register_placement` gives a rule its name."
    )
  if placement.chunk != chunk:
    raise ValueError(
      f"placement has chunk {placement.chunk}; the model has {chunk}."
    )
  return placement


def _number(text: str) -> int | float | None:
  """A budget as it is written behind a name; None where there is none."""
  if not text:
    return None
  try:
    return int(text)
  except ValueError:
    pass
  try:
    return float(text)
  except ValueError:
    raise ValueError(
      f"placement has budget {text!r}; it must be a number."
    ) from None
