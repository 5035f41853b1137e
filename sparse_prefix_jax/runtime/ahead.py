"""Programs compiled from shapes before they are needed, and probed after."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import Pools, map_pools
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.in_place import shape_like
from sparse_prefix_jax.runtime.plan import build_plan, page_table
from sparse_prefix_jax.runtime.pools import copy_sequence
from sparse_prefix_jax.runtime.run import head_rows, last_rows, run_groups
from sparse_prefix_jax.runtime.segment import Segment
from sparse_prefix_jax.runtime.shapes import (
  fork_shapes,
  group_shapes,
  step_shapes,
)


def ahead_shapes(
  model: programs.FrozenModel, pools: Pools, *, slots: int, pages: int
) -> tuple[programs.FrozenModel, Any]:
  """The shapes of the weights, and of pools of another size; no arrays.

  Args:
    model: Its parameters, wherever they are.
    pools: Today's; they say what a slot and a page are.
    slots: How many there will be.
    pages: How many there will be.

  Returns:
    Both, where and in the memory order that the arrays are or will be.
  """
  shapes = map_pools(
    pools, partial(shape_like, rows=slots), partial(shape_like, rows=pages)
  )
  return jax.tree.map(lambda x: shape_like(x, x.shape[0]), model), shapes


def compile_ahead(weights: programs.FrozenModel, shapes: Any) -> None:
  """Compiles every program for pools that are not there yet.

  A later call with such pools finds them compiled.

  Args:
    weights: Shapes of the parameters, and the configuration.
    shapes: Of the pools.
  """
  config = weights.config
  for rung in config.numerics.ladder:
    group = group_shapes(config, rung)
    programs.prefill_group.lower(weights, shapes, group).compile()
  programs.decode_step.lower(weights, shapes, step_shapes(config)).compile()
  copy_sequence.lower(shapes, *fork_shapes()).compile()


def _segment(
  config: ModelConfig, chunks: int, slots: Sequence[int], pages: Sequence[int]
) -> Segment:
  """Fixed tokens from the start, whose state is captured at their end."""
  size = chunks * config.numerics.chunk
  return Segment(
    tokens=(np.arange(size) * 7919 % config.vocab_size).astype(np.int32),
    start=0,
    read=ZERO,
    writes={size: slots[0]},
    spill=slots[1],
    pages=list(pages[:chunks]),
  )


def idle_step(config: ModelConfig) -> programs.Step:
  """Input of the decode program in which every row is free."""
  size = config.numerics.decode_rows
  tokens, position = np.zeros((2, size), np.int32)
  read, write = np.full(size, ZERO, np.int32), np.full(size, NONE, np.int32)
  rows: Any = (read, write, position, np.zeros(size, bool))
  inputs: Any = (tokens, Rows(*rows), page_table(config, [[]] * size))
  return programs.Step(*inputs)


def probe(
  model: programs.FrozenModel,
  pools: Pools,
  slots: Sequence[int],
  pages: Sequence[int],
) -> Iterator[tuple[Pools, str]]:
  """Runs fixed tokens through every program, in free slots and pages.

  Args:
    model: Parameters and configuration.
    pools: Donated; whoever iterates keeps what is yielded in their place.
    slots: Two free ones.
    pages: As many free ones as the largest rung has chunks.

  Yields:
    The pools, and a digest of all bits so far; the last one is the answer.
  """
  config, digest = model.config, hashlib.blake2b(digest_size=16)
  limits = {"slots": max(slots) + 1, "pages": max(pages) + 1}
  for rung in config.numerics.ladder:
    segment = _segment(config, rung, slots, pages)
    plan = build_plan(config, [segment], **limits)
    for after, logits in run_groups(model, pools, plan, last_rows(plan)):
      pools = after
      digest.update(logits.tobytes())
      yield pools, digest.hexdigest()
    digest.update(_state(pools, slots[0], pages[0]))
  step = idle_step(config)
  first = np.arange(config.numerics.decode_rows) == 0
  rows = step.rows._replace(
    write=np.where(first, slots[1], NONE).astype(np.int32), active=first
  )
  table = page_table(config, [pages[:1], *[[]] * (first.size - 1)])
  step = step._replace(rows=rows, page_table=table)
  hidden, pools = programs.decode_step(model, pools, step)
  yield pools, digest.hexdigest()
  digest.update(head_rows(model, hidden, np.arange(1)).tobytes())
  digest.update(_state(pools, slots[1], pages[0]))
  yield pools, digest.hexdigest()


def _state(pools: Pools, slot: int, page: int) -> bytes:
  """The bytes of one slot and one page in all branches."""
  rows = map_pools(pools, lambda pool: pool[slot], lambda pool: pool[page])
  leaves = jax.device_get(jax.tree.leaves(rows))
  return b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)
