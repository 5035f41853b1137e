"""How chunks are divided among the programs of a scan on a GPU.

The carry goes from chunk to chunk, so what runs at the same time is heads,
columns, and requests: a program walks through one *segment*, the chunks of one
request, and other segments have programs of their own. How many segments there
are is data, and so a grid has programs for `_SEGMENTS` of them, which take the
next ones when they are through.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Int32

from sparse_prefix_jax.kernels.chunks import CARRY, ZERO, Chunks
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, Ref

READ, WRITE, LENGTH, LIVE, STOP = range(5)
"""The numbers of the rows of `plan`."""

_SEGMENTS = 16
"""Segments that have programs of their own. Programs that find no segment take
a multiprocessor for about a microsecond each."""


def programs(n: int) -> int:
  """The size of the axis `segment` of a grid for n chunks."""
  return min(n, _SEGMENTS)


def plan(chunks: Chunks) -> Int32[Array, "5 n"]:
  """What the programs of a scan ask about chunk j, as int32.

  A *segment* is a chunk that reads a slot or zero, and those after it that go
  on from their predecessor. Segments do not depend on one another (no slot is
  written by one request and read or written by another).

  Returns:
    READ: Slot, ZERO or CARRY; never CARRY at the first chunk, whose carry is
      empty.
    WRITE: Slot or NONE.
    LENGTH: Real tokens.
    LIVE: End of the last chunk of j's segment that computes or captures.
    STOP: End of j's segment.
  """
  n = chunks.read.shape[0]
  index = jnp.arange(n, dtype=jnp.int32)
  read = jnp.where((index == 0) & (chunks.read == CARRY), ZERO, chunks.read)
  starts = read != CARRY
  # The next start after j, by a minimum over those that follow.
  following = jnp.where(
    starts[None, :] & (index[None] > index[:, None]), index[None], n
  )
  stop = jnp.min(following, axis=1)
  works = (chunks.length > 0) | (chunks.write >= 0)
  inside = works[None] & (index[None] < stop[:, None])
  live = jnp.max(jnp.where(inside, index[None] + 1, 0), axis=1)
  return jnp.stack([read, chunks.write, chunks.length, live, stop]).astype(
    jnp.int32
  )


def scan_segments(
  plan: Ref,
  arrived: Ref,
  stages: int,
  *,
  restore: Callable[[Array], Any],
  load: Callable[[Array, Array | int], None],
  step: Callable[[Array, Array, Any], Any],
  clear: Callable[[Array], None],
  emit: Callable[[Array, Any], None] = lambda *_: None,
) -> None:
  """Scans the segments of this program of the axis `segment`.

  The loads of a chunk begin `stages` chunks ahead, when the buffers of its
  stage are free again.

  Args:
    plan: What `plan` tells of each chunk.
    arrived: One barrier per stage, which the loads of a chunk complete.
    stages: How many chunks are under way at a time.
    restore: Slot or ZERO -> carry.
    load: Chunk, stage: starts the copies.
    step: Chunk, stage, carry -> carry: computes, and emits and captures unless
      `emit` does.
    clear: Chunk: emits zeros for an inactive one.
    emit: Chunk, carry: copies what `step` left in shared memory.
  """

  def segment(first: Array) -> None:
    live, stop = plan[LIVE, first], plan[STOP, first]
    carry = restore(plan[READ, first])
    for stage in range(stages):
      pl.when(first + stage < live)(
        functools.partial(load, first + stage, stage)
      )

    def advance(chunk: Array, carry: Any) -> Any:
      # Zero, but a compiler does not know: it would compute all addresses of
      # the only stage before the loop, and they would take its registers.
      zero = lax.max(-plan[LENGTH, chunk], 0)
      stage = zero if stages == 1 else lax.rem(chunk - first, stages)
      plgpu.barrier_wait(arrived.at[stage])
      carry = step(chunk, stage, carry)
      plgpu.commit_smem()  # all have read this stage, before it is overwritten
      after = chunk + stages
      pl.when(after < live)(functools.partial(load, after, stage))
      emit(chunk, carry)
      return carry

    lax.fori_loop(first, live, advance, carry)
    lax.fori_loop(lax.max(first, live), stop, lambda j, _: clear(j), None)

  n = plan.shape[1]
  apart = programs(n)

  def following(first: Array, count: Array) -> Array:
    # A segment begins where the one before ends.
    def after(_: Array, at: Array) -> Array:
      return lax.select(at < n, plan[STOP, lax.min(at, n - 1)], at)

    return lax.fori_loop(0, count, after, first)

  def turn(_: Array, first: Array) -> Array:
    pl.when(first < n)(lambda: segment(first))
    return following(first, lax.select(first < n, apart, 0))

  first = following(jnp.int32(0), lax.axis_index("segment"))
  lax.fori_loop(0, -(-n // apart), turn, first)


def real_rows(chunks: Chunks) -> Bool[Array, "n c"]:
  """Which rows of each chunk hold tokens."""
  return jnp.arange(CHUNK)[None] < chunks.length[:, None]
