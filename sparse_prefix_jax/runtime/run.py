"""Runs a plan through the programs, group by group, and the head on rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sparse_prefix_jax.models.decoder import Pools
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.plan import Plan


class HeadRows(NamedTuple):
  """Logits of one call of the head, on the device.

  Attributes:
    logits: Float32; free rows repeat the first. [size vocab]
    count: How many of them were asked for.
  """

  logits: jax.Array
  count: int


def run_groups(
  model: programs.FrozenModel, pools: Pools, plan: Plan, rows: np.ndarray
) -> Iterator[tuple[Pools, np.ndarray]]:
  """Restores, scans and captures a plan group by group, and computes logits.

  Groups are dispatched one after another. How many there are is the only thing
  that depends on the lengths of the prompts; each is one of the compiled
  programs, one per rung. At most two are under way, so that a caller who stops
  between two of them does not wait for all.

  Args:
    model: The parameters and the configuration.
    pools: Donated; whoever iterates keeps what is yielded in their place.
    plan: What to run.
    rows: The tokens to give to the head, ascending: chunk times c plus the
      offset in it.

  Yields:
    The pools after a group, and the logits of its rows in float32 on the host.
    [rows vocab]
  """
  for after, blocks in dispatch_groups(model, pools, plan, rows):
    yield after, _fetched(model, blocks)


def dispatch_groups(
  model: programs.FrozenModel, pools: Pools, plan: Plan, rows: np.ndarray
) -> Iterator[tuple[Pools, list[HeadRows]]]:
  """Runs a plan as `run_groups` does; the logits stay on the device.

  Args:
    model: The parameters and the configuration.
    pools: Donated; whoever iterates keeps what is yielded in their place.
    plan: What to run.
    rows: The tokens to give to the head, as `run_groups` takes them.

  Yields:
    The pools after a group, and the logits of its rows.
  """
  numerics, before = model.config.numerics, None
  for chunks, group in plan.groups(numerics.ladder):
    hidden, pools = programs.prefill_group(model, pools, group)
    first, stop = chunks.start * numerics.chunk, chunks.stop * numerics.chunk
    here = rows[(rows >= first) & (rows < stop)] - first
    # Handed back before anything that may fail: the old pools are gone.
    yield pools, []
    jax.block_until_ready(before)
    before = hidden
    yield pools, head_blocks(model, hidden, here)


def run_plan(
  model: programs.FrozenModel, pools: Pools, plan: Plan, rows: np.ndarray
) -> tuple[np.ndarray, Pools]:
  """Runs a whole plan at once, for callers who keep no cache.

  Args:
    model: The parameters and the configuration.
    pools: Donated: the result takes their memory.
    plan: What to run.
    rows: The tokens to give to the head, as `run_groups` takes them.

  Returns:
    Logits [rows vocab] in float32 on the host, and the pools.
  """
  groups = list(run_groups(model, pools, plan, rows))
  return np.concatenate([logits for _, logits in groups]), groups[-1][0]


def head_rows(
  model: programs.FrozenModel,
  hidden: jax.Array,
  rows: np.ndarray,
  size: int | None = None,
) -> np.ndarray:
  """Computes the logits of some rows.

  Args:
    model: The parameters and the configuration.
    hidden: What a prefill or decode program returned. [... d]
    rows: The indices of rows in it.
    size: As `head_blocks` takes it.

  Returns:
    The logits in float32, on the host. [rows vocab]
  """
  return _fetched(model, head_blocks(model, hidden, rows, size))


def head_blocks(
  model: programs.FrozenModel,
  hidden: jax.Array,
  rows: np.ndarray,
  size: int | None = None,
) -> list[HeadRows]:
  """Computes the logits of some rows, which stay on the device.

  Free rows of the program repeat row 0.

  Args:
    model: The parameters and the configuration.
    hidden: What a prefill or decode program returned. [... d]
    rows: The indices of rows in it.
    size: Rows of a call, each of which reads the whole vocabulary's weights:
      `decode_rows` after a step, so that one call does; None for `head_rows`.

  Returns:
    The rows in order, `size` at a time.
  """
  size, blocks = size or model.config.numerics.head_rows, []
  for start in range(0, rows.size, size):
    part, padded = rows[start : start + size], np.zeros(size, np.int32)
    padded[: part.size] = part
    logits = programs.head(model, programs.gather_rows(hidden, padded))
    blocks.append(HeadRows(logits, part.size))
  return blocks


def _fetched(
  model: programs.FrozenModel, blocks: Sequence[HeadRows]
) -> np.ndarray:
  """The logits of all rows in float32, on the host. [rows vocab]"""
  parts = [np.zeros((0, model.config.vocab_size), np.float32)]
  parts += [np.asarray(block.logits)[: block.count] for block in blocks]
  return np.concatenate(parts)


def last_rows(plan: Plan) -> np.ndarray:
  """Finds the last token of every segment of a plan, for `run_groups`."""
  last = np.flatnonzero(np.diff(plan.request, append=-1))
  return last * plan.tokens.shape[1] + plan.length[last] - 1


def all_rows(plan: Plan) -> np.ndarray:
  """Finds every real token of a plan, for `run_groups`."""
  chunk = plan.tokens.shape[1]
  real = np.arange(chunk)[None] < plan.length[:, None]
  return np.flatnonzero(real.reshape(-1))
