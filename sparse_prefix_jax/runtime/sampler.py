"""Sampling on the device: logits in, ids and log probabilities out.

What a row draws is a function of its logits, its parameters, its counts, its
seed, its sample index and its position, bit for bit, whichever place of
whichever batch it has: rows are the steps of a `lax.map`, each the same
program, and a key is made of nothing else. Parameters are arrays, so that there
is one program for all of them; what a row does not ask for is skipped. On a GPU
each step of a loop and each condition is a wait for the host, so there rows go
side by side, always as many, and what none of them asks for is skipped.

What one row does is said by `row_sampler.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import select
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.runtime.row_sampler import (
  Sampled,
  SamplingRows,
  TokenCounts,
  draw_nothing,
  draw_row,
  needs_of,
)

_GPU_ROWS = 16
"""Rows side by side on a GPU: a sum over them has bits by their number."""


@functools.partial(jax.jit, donate_argnames=("counts",))
def sample(
  logits: at.Logits,
  rows: SamplingRows,
  counts: TokenCounts,
  positions: Int32[Array, "b"] | Int32[np.ndarray, "b"],
) -> tuple[Sampled, TokenCounts]:
  """Draws one id for every row.

  Args:
    logits: Of the model. [b vocab], b at least 2
    rows: What each row asks for.
    counts: Donated.
    positions: Which token of its sequence each row draws: how many stand
      before it.

  Returns:
    What was drawn, and the counts with it.

  Raises:
    ValueError: If there are fewer than two rows: a loop of one step would be
      another program, with other bits.

  Example:
    >>> from sparse_prefix_jax.serving.sampling import Sampling, sampling_rows
    >>> rows = sampling_rows([Sampling(), None], vocab_size=4)
    >>> logits = jnp.array([[0.0, 2.0, 1.0, 2.0], [0.0] * 4])
    >>> drawn, _ = sample(logits, rows, no_counts(4), np.zeros(2, np.int32))
    >>> drawn.ids.tolist()
    [1, 0]
  """
  if logits.shape[0] < 2:
    raise ValueError(
      f"logits has {logits.shape[0]} rows; sampling takes at least 2, of which "
      "any may be inactive."
    )
  # Inside a larger program, what makes the logits must not be fused with this.
  inputs = barrier(logits), rows, positions
  if current_device().platform == "gpu":
    drawn = _side_by_side(functools.partial(_sample_rows, counts), inputs)
  else:
    one = functools.partial(_sample_row, counts)
    drawn = jax.lax.map(lambda xs: one(*xs), inputs)
  counted = rows.active & (rows.counts >= 0)
  slots = jnp.where(counted, rows.counts, counts.shape[0])
  return drawn, counts.at[slots, drawn.ids].add(2, mode="drop")


def no_counts(vocab_size: int, slots: int = 1) -> TokenCounts:
  """Makes room for the counts of some sequences.

  Args:
    vocab_size: Ids of the model.
    slots: For how many sequences.
  """
  return jnp.zeros((slots, vocab_size), jnp.int32)


@functools.partial(jax.jit, donate_argnames=("counts",))
def set_counts(
  counts: TokenCounts,
  slot: int | Int32[Array, ""] | np.integer,
  row: Int32[Array, "vocab"] | Int32[np.ndarray, "vocab"],
) -> TokenCounts:
  """Puts the counts of a sequence in their slot, at first or once more.

  Args:
    counts: Donated.
    slot: Which one.
    row: Of `counts_of`.
  """
  return counts.at[slot].set(row)


def counts_of(
  prompt: np.ndarray, decoded: np.ndarray, vocab_size: int
) -> Int32[np.ndarray, "vocab"]:
  """Counts the ids of a sequence; a preempted one needs nothing else.

  Args:
    prompt: Ids of its prompt. [t]
    decoded: Ids drawn after it. [t]
    vocab_size: Ids of the model.

  Example:
    >>> counts_of(np.array([0, 0, 1]), np.array([1, 2, 2]), 4).tolist()
    [1, 3, 4, 0]
  """
  row = 2 * np.bincount(decoded, minlength=vocab_size).astype(np.int32)
  row[prompt] += 1
  return row


def _side_by_side(run: Callable[..., Sampled], inputs: Any) -> Sampled:
  """Takes rows by the `_GPU_ROWS`; the last ones are filled up with zeros."""
  count = inputs[0].shape[0]
  tiles = -(-count // _GPU_ROWS)

  def cut(x: Array) -> Array:
    x = jnp.asarray(x)
    rest = tiles * _GPU_ROWS - count
    padded = jnp.pad(x, [(0, rest), *[(0, 0)] * (x.ndim - 1)])
    return padded.reshape(tiles, _GPU_ROWS, *x.shape[1:])

  cuts = jax.tree.map(cut, inputs)
  if tiles == 1:  # no loop
    only = jax.tree.map(lambda x: x[0], cuts)
    drawn = jax.tree.map(lambda y: y[None], run(*only))
  else:
    drawn = jax.lax.map(lambda xs: run(*xs), cuts)
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], drawn)


def _sample_row(
  counts: TokenCounts,
  logits: Float32[Array, "vocab"],
  row: SamplingRows,
  position: Int32[Array, ""],
) -> Sampled:
  """Draws for one row alone, if it is in use."""
  return jax.lax.cond(
    row.active,
    lambda: draw_row(counts, logits, row, position, needs_of(row)),
    lambda: draw_nothing(logits),
  )


def _sample_rows(
  counts: TokenCounts,
  logits: Float32[Array, "b vocab"],
  rows: SamplingRows,
  positions: Int32[Array, "b"],
) -> Sampled:
  """Draws for rows side by side; what one of them wants is done for all."""
  logits, rows, positions = barrier((logits, rows, positions))
  active = jnp.asarray(rows.active)
  needs = jax.tree.map(lambda x: jnp.any(x & active), needs_of(rows))
  # What is asked is of no row, so that a condition remains one.
  each = jax.vmap(functools.partial(draw_row, counts), (0, 0, 0, None))
  drawn = each(logits, rows, positions, needs)
  nothing = jax.vmap(draw_nothing)(logits)
  chosen = jax.vmap(select)(active, drawn, nothing)
  return barrier(chosen)
