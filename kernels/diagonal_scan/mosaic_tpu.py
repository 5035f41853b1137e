"""diagonal_scan as a Mosaic TPU kernel: token by token within a chunk.

Channels lie along the lanes, and the e numbers of a channel of Mamba's form
along the sublanes, so that a token is a few long vector operations:

    h = exp(a_t) h + x_t                       y_t = h
    h = exp(rate^T a_t) h + b_t x_t            y_t = sum over e of c_t h
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import (
  Config,
  Operand,
  Ref,
  packed_scan,
)

_ROWS = 8
"""Tokens that are loaded together: a whole tile of float32."""


def _run(
  x: Float[Array, "n c d"],
  log_decay: Float32[Array, "n c d"],
  pool: Float32[Array, "s d *e"],
  chunks: Chunks,
  *,
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "n c e"] | None,
  c: Float[Array, "n c e"] | None,
  config: Config,
) -> tuple[Float32[Array, "n c d"], Float32[Array, "s d *e"]]:
  """Runs the operation as one kernel, called as `diagonal_scan` is.

  The pool stays in HBM and is the result: a slot moves when a request is
  resumed and when a chunk is captured, never between two chunks.
  """
  xs = [Operand(x, 2), Operand(log_decay, 2)]
  selective = False
  if rate is not None and b is not None and c is not None:
    selective = True
    # XLA keeps states of a few numbers with the channels along the lanes
    # already: neither this nor the way back moves anything.
    pool = pool.swapaxes(1, 2)
    xs.append(Operand(rate.T, 1, chunked=False))
    xs += [Operand(u.swapaxes(1, 2), None) for u in (b, c)]
  y, pool = packed_scan(
    _selective_cell if selective else _cell,
    xs,
    Operand(jax.ShapeDtypeStruct(x.shape, jnp.float32), 2),
    Operand(pool, 2 if selective else 1),
    chunks,
    blocks=x.shape[2] // config.block,
    config=config,
    name="diagonal_scan",
  )
  return y, pool.swapaxes(1, 2) if selective else pool


def _cell(carry: Ref, xs: Sequence[Ref], y: Ref, length: Array) -> None:
  """Advances a block of channels by one chunk; the state is one row.

  Args:
    carry: The state [1 d], which is updated.
    xs: x and log_decay, [c d].
    y: The states after each token, [c d]; zero past the real ones.
    length: How many tokens are real.
  """

  def token(
    state: Array, t: Array, x: Array, log_decay: Array
  ) -> tuple[Array, Array]:
    del t
    state = jnp.exp(log_decay) * state + x
    return state, state

  carry[...] = _tokens(token, carry[...], xs, y, length)


def _selective_cell(
  carry: Ref, xs: Sequence[Ref], y: Ref, length: Array
) -> None:
  """Advances a block of channels with e numbers each by one chunk.

  Args:
    carry: The state [1 e d], which is updated.
    xs: x and log_decay [c d], rate [e d], b and c [e c].
    y: What c reads out of each state, [c d]; zero past the real tokens.
    length: How many tokens are real.
  """
  x_ref, log_decay_ref, rate_ref, b_ref, c_ref = xs
  rate = rate_ref[...]
  b, c = (ref[...].astype(jnp.float32) for ref in (b_ref, c_ref))
  lane = algebra.iota(b.shape, 1)

  def at(x: Array, t: Array) -> Array:
    chosen = jnp.where(lane == t, x, 0.0)
    return jnp.sum(chosen, axis=1, keepdims=True)

  def token(
    state: Array, t: Array, x: Array, log_decay: Array
  ) -> tuple[Array, Array]:
    state = jnp.exp(rate * log_decay) * state + at(b, t) * x
    return state, jnp.sum(state * at(c, t), axis=0, keepdims=True)

  refs = (x_ref, log_decay_ref)
  carry[0] = _tokens(token, carry[0], refs, y, length)


def _tokens(
  token: Any, state: Array, refs: Sequence[Ref], y: Ref, length: Array
) -> Array:
  """Advances the state over the real tokens and writes their y.

  Only the tiles of real tokens are visited; in the last of them the state is
  selected, so that padding leaves its bits.

  Args:
    token: `(state, t, x, log_decay)` -> the state after token t, and its y.
    state: The state before the chunk.
    refs: x and log_decay, [c d].
    y: Outputs, [c d].
    length: How many tokens are real.

  Returns:
    The state after the last real token.
  """
  x_ref, log_decay_ref = refs
  y[...] = jnp.zeros_like(y)

  def tile(index: Array, state: Array) -> Array:
    first = pl.multiple_of(index * _ROWS, _ROWS)
    rows = pl.ds(first, _ROWS)
    x = x_ref[rows].astype(jnp.float32)
    log_decay = algebra.settle_resets(log_decay_ref[rows])
    outs = []
    for row in range(_ROWS):
      one = slice(row, row + 1)
      advanced, out = token(state, first + row, x[one], log_decay[one])
      real = first + row < length
      state = jnp.where(real, advanced, state)
      outs.append(jnp.where(real, out, 0.0))
    y[rows] = jnp.concatenate(outs, axis=0)
    return state

  return lax.fori_loop(0, pl.cdiv(length, _ROWS), tile, state)


def _refusal(
  device: Device, config: Config, *arguments: Any, **options: Any
) -> str | None:
  """Why the call does not fit a TPU, or None."""
  x, _, pool, _ = arguments
  # More of them fill the lanes: XLA lays those out the other way round.
  if options["rate"] is not None and pool.shape[2] not in range(8, 65, 8):
    return f"{pool.shape[2]} states per channel are not 8, 16, ... or 64"
  return fit.refusal_of_channels(config, x, 2) or fit.refusal_of_state(pool)


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  """Chooses how many channels a grid step takes."""
  return Config(block=fit.channels_per_step(device, arguments[0], 2))


IMPLEMENTATION = Implementation(Config, _run, _refusal, _heuristic)
