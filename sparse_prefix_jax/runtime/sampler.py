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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import in_fixed_rows, select
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.runtime.compiling import Program
from sparse_prefix_jax.runtime.row_sampler import (
  NOTHING,
  Sampled,
  SamplingRows,
  TokenCounts,
  draw_nothing,
  draw_row,
  needs_of,
)

_GPU_ROWS = 16
"""Rows side by side on a GPU, always: for another number of them the sum over
each may be added in another order."""


def sample(
  logits: at.Logits | Float32[np.ndarray, "rows vocab"],
  rows: SamplingRows,
  counts: TokenCounts,
  positions: Int32[Array, "b"] | Int32[np.ndarray, "b"],
  *,
  greedy: bool = False,
) -> tuple[Sampled, TokenCounts]:
  """Draws one id for every row.

  Args:
    logits: Of the model. [b vocab], b at least 2
    rows: What each row asks for.
    counts: Donated.
    positions: Which token of its sequence each row draws: how many stand
      before it.
    greedy: That every row takes its largest logit, has no penalties and wants
      no best ids: a program without conditions on a GPU, and without any other
      bits. Elsewhere it changes nothing.

  Returns:
    What was drawn, and the counts with it.

  Raises:
    ValueError: If there are fewer than two rows: where they are steps of a
      loop, one step would be another program, with other bits.

  Example:
    >>> zeros, ids = np.zeros(2, np.float32), np.zeros((2, 1), np.int32)
    >>> rows = SamplingRows(
    ...   active=np.array([True, False]),
    ...   **dict.fromkeys(("temperature", "min_p", "presence"), zeros),
    ...   **dict.fromkeys(("top_p", "repetition"), zeros + 1),
    ...   **dict.fromkeys(("seed", "sample"), np.zeros(2, np.uint32)),
    ...   frequency=zeros,
    ...   top_k=ids[:, 0],
    ...   counts=ids[:, 0] - 1,
    ...   best=zeros > 0,
    ...   bias_ids=ids - 1,
    ...   biases=zeros[:, None],
    ...   allowed=np.uint32(ids + 15),
    ... )
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
  return _sampled(logits, rows, counts, positions, greedy)


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


def _sample(
  logits: at.Logits,
  rows: SamplingRows,
  counts: TokenCounts,
  positions: Int32[Array, "b"],
  greedy: bool,
) -> tuple[Sampled, TokenCounts]:
  """`sample`, whose rows stand side by side on a GPU."""
  if current_device().platform == "gpu":
    draw = functools.partial(_sample_rows, counts, greedy)
    drawn = in_fixed_rows(draw, logits, rows, positions, tile=_GPU_ROWS)
  else:
    # Inside a larger program, what makes the logits must not be fused with it.
    inputs = barrier(logits), rows, positions
    one = functools.partial(_sample_row, counts)
    drawn = jax.lax.map(lambda xs: one(*xs), inputs)
  counted = rows.active & (rows.counts >= 0)
  slots = jnp.where(counted, rows.counts, counts.shape[0])
  return drawn, counts.at[slots, drawn.ids].add(2, mode="drop")


_sampled = Program(_sample, donate_argnums=2, static_argnums=4)


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
  greedy: bool,
  logits: Float32[Array, "b vocab"],
  rows: SamplingRows,
  positions: Int32[Array, "b"],
) -> Sampled:
  """Draws for rows side by side; what one of them wants is done for all."""
  active = jnp.asarray(rows.active)
  needs = NOTHING
  if not greedy:
    needs = jax.tree.map(lambda x: jnp.any(x & active), needs_of(rows))

  def draw(logits: Array, row: SamplingRows, position: Array) -> Sampled:
    # What is needed is of no row, so that a condition remains one.
    return draw_row(counts, logits, row, position, needs)

  drawn = jax.vmap(draw)(logits, rows, positions)
  nothing = jax.vmap(draw_nothing)(logits)
  return jax.vmap(select)(active, drawn, nothing)
