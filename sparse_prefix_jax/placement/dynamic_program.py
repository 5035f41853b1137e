"""The best placement, exactly, on the device: `solve_placement`.

The problem is that of docs/design.md, "Where states are kept". The largest
staircase of at most m steps under the survival G

    V_m(s) = max over r < s of  V_{m-1}(r) + (F(s) - F(r)) G(s)

is found layer by layer. Two facts make a layer cheap and regular:

* `r < s` may be dropped. For r >= s the candidate is the staircase that ends
  at r, cut off at s, which a staircase of m steps that ends at s is never
  below. So a layer is a plain maximum over lines,
  `F(s) G(s) + max over r of (V(r) - F(r) G(s))`, and any superset of the
  useful r gives the same maximum: no masks, no ragged ranges.
* The slopes -F(r) and the abscissae G(s) are both monotone, so the first
  maximiser a(s) never decreases. Once a(s) is known for every S-th query, up
  to tiles of S, the queries between two neighbours k and k + 1 need only the
  tiles a(k) .. a(k+1). Over all gaps those are at most 2 N / S - 1 pairs
  (gap, tile): a fixed shape.

Each level goes from stride S to stride S / 32, say: it takes the maximum inside
every pair's dense block [32 queries, S values], per sub-tile of S / 32, and
then over the pairs of a gap. That is 2 * 32 * N products a level and
log_32(N) levels: O(N log N) a layer, O(M N log N) in all, in dense blocks that
vectorise. The last level needs no maximiser; the few that lead back from the
best end are recomputed from the kept V_m.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

from sparse_prefix_jax.array_typing import Positions
from sparse_prefix_jax.placement.inputs import (
  Vector,
  check_budget,
  checked_inputs,
  needs_x64,
  x64_is_on,
)
from sparse_prefix_jax.placement.problem import (
  UNUSED,
  Placement,
  Problem,
  build_problem,
  check_fits,
  measure,
)

# Queries that one level adds per gap. 32 was the fastest of 4, 8, 16 and 32
# on two CPU cores at N from 1,024 to 16,384 (benchmarks/placement.py).
_FAN_OUT = 32

# The first level asks its queries of all lines. Where that would be more than
# 8 queries, a level of 4 goes before it: wide first levels were five times
# slower for each product.
_FIRST, _SPLIT = 8, 4


class _Lines(NamedTuple):
  """A layer as lines: line r is `values[r] - cost[r] * x`, asked at x = G(s).

  Padded to a whole number of the widest tiles; the padding repeats the last
  line, which no maximum notices, and asks at 0.
  """

  values: Int[Array, "N"]
  cost: Int[Array, "N"]
  survival: Int[Array, "N"]


class _Pairs(NamedTuple):
  """The (gap, tile) pairs of one level, in order; p = 2 n - 1 for n gaps.

  Attributes:
    gap, tile: int32 [p]. What is beyond the last pair repeats a pair of the
      last gap or adds a later tile to it, which does no harm.
    first: int32 [n], where the pairs of each gap begin.
  """

  gap: Int32[Array, "p"]
  tile: Int32[Array, "p"]
  first: Int32[Array, "n"]


class _Best(NamedTuple):
  """Maxima of the queries of each pair, and the first sub-tile that has them.

  Attributes:
    value: [p q]. tile: int32 [p q], or None where nobody asks.
  """

  value: Int[Array, "p q"]
  tile: Int32[Array, "p q"] | None


def _strides(depths: int) -> list[int]:
  """Strides of the levels, widest first, the last one 1.

  >>> _strides(4096), _strides(16384)
  ([1024, 32, 1], [4096, 1024, 32, 1])
  """
  strides = [1]
  while 2 * strides[-1] * _FAN_OUT <= depths:
    strides.append(strides[-1] * _FAN_OUT)
  while depths > _FIRST * strides[-1]:
    strides.append(strides[-1] * _SPLIT)
  return strides[::-1]


def _pad(problem: Problem, width: int) -> tuple[jax.Array, jax.Array]:
  """Cost and survival [N], N filled up to a multiple of `width`."""
  extra = -problem.cost.shape[0] % width
  cost = jnp.pad(problem.cost, (0, extra), mode="edge")
  return cost, jnp.pad(problem.survival, (0, extra))


def _pairs(maximiser: Int32[Array, "n"]) -> _Pairs:
  """Lays out the tiles `maximiser[k] .. maximiser[k+1]` of every gap k.

  Neighbours share one tile, so gap k begins at pair
  `k + maximiser[k] - maximiser[0]`, and in it pair and tile advance together.
  """
  gaps = maximiser.shape[0]
  ones = jnp.arange(gaps, dtype=jnp.int32)
  first = ones + maximiser - maximiser[0]
  starts = jnp.zeros((2 * gaps - 1,), jnp.int32)
  starts = starts.at[first].set(
    jnp.int32(1), indices_are_sorted=True, unique_indices=True
  )
  gap = jax.lax.cumsum(starts) - jnp.int32(1)
  pair = jnp.arange(2 * gaps - 1, dtype=jnp.int32)
  tile = jnp.minimum(pair - gap + maximiser[0], jnp.int32(gaps - 1))
  return _Pairs(gap=gap, tile=tile, first=first)


def _within_pairs(
  lines: _Lines, pairs: _Pairs, fan_out: int, width: int, locate: bool
) -> _Best:
  """Maxima of each pair's queries over the lines of its tile.

  Args:
    lines: The layer.
    pairs: The pairs of this level, n gaps of `fan_out * width` queries.
    fan_out: New queries per gap q, and sub-tiles per tile.
    width: Lines per sub-tile, also the stride of the new queries.
    locate: Also find the first sub-tile with the maximum.
  """
  tiled = (pairs.first.shape[0], fan_out, width)
  values = lines.values.reshape(tiled)[pairs.tile]
  cost = lines.cost.reshape(tiled)[pairs.tile]
  asked = lines.survival.reshape(tiled)[:, :, 0][pairs.gap]
  # Without the barriers XLA repeats the gathers for every product (2x slower).
  values, cost, asked = jax.lax.optimization_barrier((values, cost, asked))
  products = cost[..., None] * asked[:, None, None, :]
  candidates = values[..., None] - products  # [p, sub-tile, line, query]
  if not locate:
    best = jnp.max(candidates, axis=(1, 2))
    return _Best(jax.lax.optimization_barrier(best), None)
  per_tile = jax.lax.optimization_barrier(jnp.max(candidates, axis=2))
  best = jnp.max(per_tile, axis=1)
  first = jax.lax.argmax(per_tile == best[:, None, :], 1, jnp.int32)
  tile = first + jnp.int32(fan_out) * pairs.tile[:, None]
  return _Best(*jax.lax.optimization_barrier((best, tile)))


def _over_pairs(best: _Best, pairs: _Pairs) -> _Best:
  """Maxima over all pairs of a gap, [n q], the earliest tile winning a tie."""
  scattered = {"indices_are_sorted": True, "mode": "promise_in_bounds"}
  value = best.value[pairs.first].at[pairs.gap].max(best.value, **scattered)
  if best.tile is None:
    return _Best(value, None)
  beyond = jnp.int32(pairs.first.shape[0] * value.shape[-1])
  reached = best.value == value[pairs.gap]
  tile = jnp.where(reached, best.tile, beyond)
  return _Best(value, tile[pairs.first].at[pairs.gap].min(tile, **scattered))


def _envelope(lines: _Lines, strides: list[int]) -> Int[Array, "N"]:
  """`max over r of (values[r] - cost[r] survival[s])` for every s."""
  depths = lines.values.shape[0]
  maximiser, stride = jnp.zeros((1,), jnp.int32), depths
  best = _Best(lines.values[None], None)
  for width in strides:
    pairs = _pairs(maximiser)
    best = _within_pairs(lines, pairs, stride // width, width, width > 1)
    best = _over_pairs(best, pairs)
    if best.tile is not None:
      maximiser = best.tile.reshape(depths // width)
    stride = width
  return best.value.reshape(depths)


def _layers(
  cost: Int[Array, "N"], survival: Int[Array, "N"], budget: int
) -> Int[Array, "m N"]:
  """`V_1 .. V_m`, row by row."""
  strides = _strides(cost.shape[0])
  area = cost * survival

  def layer(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
    values = area + _envelope(_Lines(values, cost, survival), strides)
    return values, values

  _, layers = jax.lax.scan(layer, area, None, length=budget - 1)
  return jnp.concatenate([area[None], layers])


def _first_maximum(values: Int[Array, "N"]) -> Int32[Array, ""]:
  """Index of the first maximum.

  `argmax` of int64 is lowered by tracing it anew, which fails inside an outer
  `jit` without 64-bit types; of booleans it always works.
  """
  return jax.lax.argmax(values == jnp.max(values), 0, jnp.int32)


def _trace_back(
  layers: Int[Array, "m N"], cost: Int[Array, "N"], survival: Int[Array, "N"]
) -> Positions:
  """The positions of the best staircase, int32 [m], deepest first, then 0.

  The first maximiser lies before s wherever s > 0, and 0 stays 0.
  """

  def step(s: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _first_maximum(values - cost * survival[s]), s

  end = _first_maximum(layers[-1])
  first, rest = jax.lax.scan(step, end, layers[:-1], reverse=True)
  return jnp.concatenate([first[None], rest])[::-1]


def _ascending(descending: Int32[Array, "found"], budget: int) -> Positions:
  """Turns positions around, and fills up with `UNUSED` to length `budget`."""
  found = jnp.sum(descending > 0, dtype=jnp.int32)
  order = found - jnp.int32(1) - jnp.arange(budget, dtype=jnp.int32)
  taken = descending[jnp.maximum(order, jnp.int32(0))]
  return jnp.where(order >= 0, taken, jnp.int32(UNUSED))


@partial(jax.jit, static_argnames=("budget", "integer", "checked"))
def _solve(
  weights: jax.Array,
  cost: jax.Array,
  *,
  budget: int,
  integer: str,
  checked: bool,
) -> Placement:
  """`solve_placement` once everything static is known; x64 as it needs."""
  problem = build_problem(weights, cost, integer, checked)
  if budget == 0:
    return measure(problem, jnp.zeros((0,), jnp.int32))
  cost_units, survival = _pad(problem, _strides(weights.shape[0])[0])
  layers = _layers(cost_units, survival, budget)
  descending = _trace_back(layers, cost_units, survival)
  return measure(problem, _ascending(descending, budget))


def solve_placement(
  weights: Vector,
  budget: int,
  cost: Vector | None = None,
  *,
  integer: str | None = None,
) -> Placement:
  """Places at most `budget` states so that least is recomputed.

  It minimises `sum_t w(t) (F(t) - F(deepest s_i <= t))` exactly, which is the
  paper's placement problem (docs/design.md, "Where states are kept"). It works
  inside `jax.jit` and under `jax.vmap` over many prefixes, with `budget` and
  `integer` static, and takes time O(budget N log N) and memory O(budget N);
  a budget above N - 1 adds places that are not used, and nothing else.

  Args:
    weights: [N] Counts or probabilities of the overlap depths, N >= 2; index =
      depth in any unit (chunks, say).
    budget: How many states may be kept; more than N - 1 is allowed.
    cost: [N] Cumulative cost F of prefilling to each depth, F(0) = 0, never
      decreasing; None for the linear one, F(t) = t.
    integer: "int32" or "int64", the type to solve in. None chooses: the
      narrowest that holds concrete integers, int64 for floats and under `jit`.
      64-bit types are allowed locally, whatever the process is set to.

  Returns:
    A `Placement` of `budget` places; equal objectives may have several
    optimal positions, of which it holds one.

  Raises:
    ValueError: If there are fewer than two depths; if weights are negative,
      not finite or all zero; if the cost decreases, is not finite, does not
      begin at 0 or has another length; if the budget is negative or not below
      2**31; or if integers are beyond the type. Values that are traced give no
      positions and `valid = False` instead.

  >>> placement = solve_placement([0, 5, 0, 1, 9, 0], 2)
  >>> placement.positions.tolist(), int(placement.objective)
  ([1, 4], 2)
  """
  budget = check_budget(budget)
  if budget >= 2**31:
    raise ValueError(f"budget must be below 2**31, got {budget}")
  weights, cost, integer, checked = checked_inputs(weights, cost, integer)
  with jax.enable_x64(needs_x64(integer, weights, cost) or x64_is_on()):
    useful = min(budget, weights.shape[0] - 1)
    placement = _solve(
      weights, cost, budget=useful, integer=integer, checked=checked
    )
    placement = placement._replace(
      positions=jnp.pad(
        placement.positions,
        (0, budget - useful),
        constant_values=jnp.int32(UNUSED),
      )
    )
  return check_fits(placement, integer) if checked else placement
