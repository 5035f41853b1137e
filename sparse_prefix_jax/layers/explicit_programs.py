"""The programs behind `scan` and `cell`: small pools, and the packed forms.

A scan of a request makes a pool of its carry, one slot and its pages, and runs
the packed form over its chunks, a rung of the ladder at a time: the programs of
a server, hence its bits. Requests are mapped one after another, and so is
`vmap`, in both directions: side by side, products of narrow heads have other
bits.

The gradient keeps the slots at the start of every group, and the last pages:
later tokens are masked, so these pages serve every group. The backward pass
takes the groups in reverse, computes each again and differentiates it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks, Rows
from sparse_prefix_jax.kernels.lattice_attention import BLOCK_PAGES
from sparse_prefix_jax.layers.derivative import differentiable_once
from sparse_prefix_jax.layers.numerics import Numerics, chunks_per_group
from sparse_prefix_jax.layers.sublayer import BranchPools
from sparse_prefix_jax.layers.wide_gradients import (
  added_wide,
  graded_wide,
  rounded_once,
  wide_zeros,
)


class Inputs(NamedTuple):
  """What a program has a gradient in.

  Attributes:
    weights: The float leaves of the module.
    slots: Trees of arrays [b ...].
    pages: Trees of arrays [b pages ...].
    x: The activations, padded: [b groups k c d] of a scan, [b d] of a cell.
  """

  weights: list[Array]
  slots: Any
  pages: Any
  x: Array


class Integers(NamedTuple):
  """What a program has no gradient in.

  Attributes:
    others: The leaves of the module that are no floats.
    position: Tokens before the first one, of each request. [b]
    length: Real tokens of each request. [b]
    capture_at: Numbers of tokens. [m]
  """

  others: list[Array]
  position: Int32[Array, "b"]
  length: Int32[Array, "b"]
  capture_at: Int32[Array, "m"]


class Outputs(NamedTuple):
  """What a program returns: activations, the carry, and states [b m ...]."""

  y: Array
  slots: Any
  pages: Any
  captured: Any


@functools.partial(jax.jit, static_argnames=("numerics",))
def run_scan(
  module: Any,
  pools: BranchPools,
  x: Float[Array, "b t d"],
  counts: tuple[Array, Array, Array],
  *,
  numerics: Numerics,
) -> Outputs:
  """Scans the tokens of b requests; padding is selected to zero.

  Args:
    module: `(x, pools, chunks, page_table) -> (y, pools)`, a tree of arrays.
    pools: Slots [b ...] and pages [b pages ...].
    x: Activations.
    counts: `position` [b], `length` [b] and `capture_at` [m] of `Integers`.
    numerics: How the module is computed.
  """
  (b, t, width), c = x.shape, numerics.chunk
  k = chunks_per_group(-(-t // c), numerics.ladder)
  groups = -(-t // (k * c))
  program = _Scan(*_structure(module), numerics)
  weights, others = _divided(module)
  real = (jnp.arange(t, dtype=jnp.int32)[None] < counts[1][:, None])[:, :, None]
  # Padding may hold anything, and would reach the gradient of the weights.
  x = jnp.where(real, x, jnp.zeros_like(x))
  x = jnp.pad(x, ((0, 0), (0, groups * k * c - t), (0, 0)))
  x = x.reshape(b, groups, k, c, width)
  inputs = Inputs(weights, pools.slots, pools.pages, x)
  out = _with_gradient(program)(inputs, Integers(others, *counts))
  y = out.y.reshape(b, -1, width)[:, :t]
  return out._replace(y=jnp.where(real, y, jnp.zeros_like(y)))


@functools.partial(jax.jit, static_argnames=("numerics",))
def run_cell(
  module: Any,
  pools: BranchPools,
  x: Float[Array, "b d"],
  position: Int32[Array, "b"],
  *,
  numerics: Numerics,
) -> Outputs:
  """Takes one token of b requests, `decode_rows` at a time.

  Args:
    module: It has `step(x, pools, rows, page_table) -> (y, pools)`.
    pools: Slots [b ...] and pages [b pages ...].
    x: Activations.
    position: The position of each token.
    numerics: How the module is computed.
  """
  program = _Cell(*_structure(module), numerics)
  weights, others = _divided(module)
  inputs = Inputs(weights, pools.slots, pools.pages, x)
  none = jnp.zeros(0, jnp.int32)
  counts = Integers(others, position, jnp.ones_like(position), none)
  return _with_gradient(program)(inputs, counts)


@dataclasses.dataclass(frozen=True)
class _Program:
  """A module without its leaves, and how it is computed.

  Attributes:
    structure: What puts the leaves together.
    floats: Which of the leaves are floats.
    numerics: How the module is computed.
  """

  structure: Any
  floats: tuple[bool, ...]
  numerics: Numerics

  def module(self, weights: list[Array], others: list[Array]) -> Any:
    """Puts the module together again."""
    floats, rest = iter(weights), iter(others)
    leaves = [next(floats if real else rest) for real in self.floats]
    return jax.tree.unflatten(self.structure, leaves)


class _Scan(_Program):
  """The program of `run_scan`."""

  def plain(self, inputs: Inputs, counts: Integers) -> Outputs:
    """Runs all requests, one after another."""
    return self.forward(inputs, counts)[0]

  def forward(self, inputs: Inputs, counts: Integers) -> tuple[Outputs, Any]:
    """Runs all requests; keeps the slots before every group, and no pages."""
    module = self.module(inputs.weights, counts.others)

    def request(one: Any) -> tuple[Outputs, Any]:
      slots, pages, x, position, length = one
      pool = _pool(slots, counts.capture_at.size)

      def group(carry: Any, step: Any) -> tuple[Any, Any]:
        index, x = step
        plan = self.plan(x, index, position, length, counts.capture_at)
        pool, pages = carry
        start = jax.tree.map(lambda leaf: leaf[0], pool)
        y, pool, pages = _run_group(module, pool, pages, x, plan)
        return (pool, pages), (y, start)

      steps = jnp.arange(x.shape[0], dtype=jnp.int32), x
      (pool, pages), (y, starts) = lax.scan(group, (pool, pages), steps)
      return Outputs(y, *_from_pool(pool, pages)), starts

    each = (*inputs[1:], counts.position, counts.length)
    out, starts = lax.map(request, each)
    return out, (inputs.weights, starts, out.pages, inputs.x)

  def backward(self, kept: Any, counts: Integers, d: Outputs) -> Inputs:
    """Takes the groups of every request in reverse, each from its start."""
    weights, starts, pages, x = kept

    def request(d_weights: Any, one: Any) -> tuple[Any, Any]:
      starts, pages, x, position, length, d = one

      def group(carry: Any, step: Any) -> tuple[Any, Any]:
        d_weights, d_pool, d_pages = carry
        index, x, start, d_y = step
        plan = self.plan(x, index, position, length, counts.capture_at)

        def run(weights: Any, pool: Any, pages: Any, x: Array) -> Any:
          module = self.module(weights, counts.others)
          return _run_group(module, pool, pages, x, plan)

        pool = _pool(start, counts.capture_at.size)
        _, pull = jax.vjp(run, weights, pool, pages, x)
        d_here, d_pool, d_pages, d_x = pull((d_y, d_pool, d_pages))
        d_weights = added_wide(d_weights, d_here)
        return (d_weights, d_pool, d_pages), d_x

      d_pool = jax.tree.map(
        lambda one, more: jnp.concatenate([one[None], more]),
        d.slots,
        d.captured,
      )
      steps = jnp.arange(x.shape[0], dtype=jnp.int32), x, starts, d.y
      (d_weights, d_pool, d_pages), d_x = lax.scan(
        group, (d_weights, d_pool, d.pages), steps, reverse=True
      )
      return d_weights, (jax.tree.map(lambda p: p[0], d_pool), d_pages, d_x)

    each = starts, pages, x, counts.position, counts.length, d
    d_weights, d_others = lax.scan(request, wide_zeros(weights), each)
    return Inputs(rounded_once(d_weights, weights), *d_others)

  def plan(
    self,
    x: Float[Array, "k c d"],
    group: Array,
    position: Array,
    length: Array,
    capture_at: Int32[Array, "m"],
  ) -> Chunks:
    """What the chunks of a group read, write and hold.

    Slot 0 holds the carry, slot 1 + i the state after `capture_at[i]` tokens.
    """
    k, c = x.shape[:2]
    number = jnp.arange(k, dtype=jnp.int32)
    start = (group * k + number) * c
    real = jnp.clip(length - start, 0, c)
    asked = (capture_at[None] == start[:, None] + c) & (real == c)[:, None]
    write = jnp.full(k, NONE, jnp.int32)
    if capture_at.size:
      captured = 1 + lax.argmax(asked, 1, jnp.int32)
      write = jnp.where(asked.any(axis=1), captured, NONE)
    last = number == (real > 0).sum(dtype=jnp.int32) - 1
    return Chunks(
      read=jnp.where(number == 0, 0, CARRY),
      write=jnp.where(last & (write == NONE), 0, write),
      length=real,
      position=jnp.where(real > 0, position + start, 0),
      request=jnp.zeros(k, jnp.int32),
    )


class _Cell(_Program):
  """The program of `run_cell`."""

  def forward(self, inputs: Inputs, counts: Integers) -> tuple[Outputs, Any]:
    """Takes the tokens; for the gradient it keeps what it was given."""
    return self.plain(inputs, counts), inputs

  def backward(self, kept: Inputs, counts: Integers, d: Outputs) -> Inputs:
    """Computes the tokens again, and differentiates that."""

    def run(sums: Any, others: Any) -> Outputs:
      return self.plain(Inputs(kept.weights, *others), counts, sums)

    _, pull = jax.vjp(run, wide_zeros(kept.weights), kept[1:])
    d_weights, d_others = pull(d)
    return Inputs(rounded_once(d_weights, kept.weights), *d_others)

  def plain(
    self, inputs: Inputs, counts: Integers, sums: Any = None
  ) -> Outputs:
    """Takes a token of all; the sums get the gradient of the weights."""
    (b, width), size = inputs.x.shape, self.numerics.decode_rows
    index = jnp.arange(-(-b // size) * size, dtype=jnp.int32)
    active = index < b
    own = jnp.where(active, index, 0)
    rows = Rows(
      read=jnp.where(active, index, ZERO),
      write=jnp.where(active, index, NONE),
      position=jnp.where(active, counts.position[own], 0),
      active=active,
    )
    pages = _count(inputs.pages, axis=1)
    table = own[:, None] * pages + _table(pages)
    steps = jax.tree.map(
      lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]),
      (inputs.x[own], rows, table),
    )
    flat = jax.tree.map(
      lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), inputs.pages
    )

    def group(pools: BranchPools, step: Any) -> tuple[Any, Array]:
      x, rows, table = barrier(step)
      module = self.module(graded_wide(inputs.weights, sums), counts.others)
      y, pools = module.step(x, pools, rows, table)
      return pools, barrier(y)

    pools, y = lax.scan(group, BranchPools(inputs.slots, flat), steps)
    pages = jax.tree.map(
      lambda leaf, like: leaf.reshape(like.shape), pools.pages, inputs.pages
    )
    return Outputs(y.reshape(-1, width)[:b], pools.slots, pages, ())


def _with_gradient(program: _Scan | _Cell) -> Callable[..., Outputs]:
  """A program that differentiates, unless its pages are rounded to integers."""

  def forward(inputs: Inputs, counts: Integers) -> tuple[Outputs, Any]:
    _check_differentiable(program.numerics)
    return program.forward(inputs, counts)

  return differentiable_once(program.plain, forward, program.backward)


def _check_differentiable(numerics: Numerics) -> None:
  """Refuses the gradient of what is rounded to integers."""
  if numerics.page_dtype is not None:
    raise ValueError(
      f"page_dtype is {numerics.page_dtype!r}, which has no gradient; "
      "differentiate a model with page_dtype=None, and serve its weights in "
      "the other."
    )


def _run_group(
  module: Any, pool: Any, pages: Any, x: Array, chunks: Chunks
) -> tuple[Array, Any, Any]:
  """Runs a group of chunks, and brings the last state to slot 0."""
  table = _table(_count(pages, axis=0))
  y, pools = module(x, BranchPools(pool, pages), chunks, table)
  active = (chunks.length > 0).sum(dtype=jnp.int32)
  final = jnp.where(active > 0, chunks.write[active - 1], 0)
  pool = jax.tree.map(lambda leaf: leaf.at[0].set(leaf[final]), pools.slots)
  return barrier(y), pool, pools.pages


def _pool(slots: Any, captures: int) -> Any:
  """A pool of the carry, and of zeros for what is captured."""

  def leaf(x: Array) -> Array:
    return jnp.zeros((1 + captures, *x.shape), x.dtype).at[0].set(x)

  return jax.tree.map(leaf, slots)


def _from_pool(pool: Any, pages: Any) -> tuple[Any, Any, Any]:
  """Slots, pages and captured states of a request."""
  slots = jax.tree.map(lambda leaf: leaf[0], pool)
  return slots, pages, jax.tree.map(lambda leaf: leaf[1:], pool)


def _table(pages: int) -> Int32[Array, "1 width"]:
  """The pages of a request, in order; entries past the last repeat it."""
  width = -(-pages // BLOCK_PAGES) * BLOCK_PAGES
  return jnp.minimum(jnp.arange(width, dtype=jnp.int32), pages - 1)[None]


def _count(pages: Any, axis: int) -> int:
  """How many pages a request has; one where nothing keeps any."""
  leaves = jax.tree.leaves(pages)
  return leaves[0].shape[axis] if leaves else 1


def _structure(module: Any) -> tuple[Any, tuple[bool, ...]]:
  """A module without its leaves, and which of them are floats."""
  leaves, structure = jax.tree.flatten(module)
  return structure, tuple(map(_is_float, leaves))


def _divided(module: Any) -> tuple[list[Array], list[Array]]:
  """The leaves that are floats, and the others, behind a barrier.

  Those of a module that a program closes over are constants: XLA computes with
  them as it compiles, to other bits (measured: decays of RG-LRU).
  """
  leaves = barrier(jax.tree.leaves(module))
  floats = [leaf for leaf in leaves if _is_float(leaf)]
  return floats, [leaf for leaf in leaves if not _is_float(leaf)]


def _is_float(leaf: Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.inexact)
