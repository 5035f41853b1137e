"""diagonal_scan: what layers call, whatever computes it."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import differentiable
from sparse_prefix_jax.kernels.checks import as_gates, check_pool, check_shapes
from sparse_prefix_jax.kernels.chunks import Captures, Chunks
from sparse_prefix_jax.kernels.diagonal_scan import (
  mosaic_gpu,
  mosaic_gpu_step,
  mosaic_tpu,
  mosaic_tpu_step,
  xla,
)
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.slot_checks import (
  check_core,
  check_rows,
  check_slots,
)

IMPLEMENTATIONS = (
  mosaic_gpu.IMPLEMENTATION,
  mosaic_tpu.IMPLEMENTATION,
  plain(xla.packed),
)
STEP_IMPLEMENTATIONS = (
  mosaic_gpu_step.STEP,
  mosaic_tpu_step.STEP,
  plain(xla.step),
)


def diagonal_scan(
  x: Float[Array, "n c d"],
  log_decay: Float32[Array, "n c d"],
  pool: Float32[Array, "s d *e"],
  chunks: Chunks,
  *,
  rate: Float32[Array, "d e"] | None = None,
  b: Float[Array, "n c e"] | None = None,
  c: Float[Array, "n c e"] | None = None,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c d"], Float32[Array, "s d *e"]]:
  """h_t = exp(a_t) h_{t-1} + x_t, y_t = h_t; or Mamba's form with B and C.

  With `rate`, `b` and `c` each channel d has a state of e numbers:
  h_t[d, e] = exp(a_t[d] rate[d, e]) h_{t-1}[d, e] + x_t[d] b_t[e] and
  y_t[d] = sum_e c_t[e] h_t[d, e]. Mamba: a = -dt, rate = -A, x = dt u.
  Restores each request from its slot, scans its chunks and captures the state
  after any subset of them, in one pass.

  Args:
    x: Inputs of n packed chunks.
    log_decay: Log decay a_t <= 0; -inf resets the channel.
    pool: States, [s d] or [s d e]; donated.
    chunks: What each packed chunk reads, writes and holds.
    rate: Positive factors of the log decay.
    b: What an input adds, per state channel.
    c: How the state is read out.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    y in float32 and the pool. Rows past a chunk's length are unspecified (and
    finite).

  Raises:
    ValueError: If only some of rate, b and c are given, if the pool has the
      rank of the other form, if shapes do not belong together, or if no
      implementation fits.

  Example:
    >>> import jax.numpy as jnp
    >>> chunks = Chunks(*jnp.array([[-1], [0], [3], [0], [0]]))  # from ZERO
    >>> x, halved = jnp.ones((1, 4, 1)), jnp.full((1, 4, 1), jnp.log(0.5))
    >>> y, pool = diagonal_scan(x, halved, jnp.zeros((1, 1)), chunks)
    >>> y[0, :3, 0].tolist(), pool[0, 0].item()
    ([1.0, 1.5, 1.75], 1.75)
  """
  _check(pool, (rate, b, c))
  given = {"rate": (rate, "d e"), "b": (b, "n c e"), "c": (c, "n c e")}
  sizes = check_shapes(
    "diagonal_scan",
    chunks,
    x=(x, "n c d"),
    log_decay=(log_decay, "n c d"),
    pool=(pool, "s d" if rate is None else "s d e"),
    **{k: (u, axes) for k, (u, axes) in given.items() if u is not None},
  )
  check_pool("diagonal_scan", pool, jnp.float32)
  check_slots("diagonal_scan", chunks, sizes)
  log_decay, rate = as_gates(log_decay, rate)
  return dispatch(
    "diagonal_scan",
    implementation,
    IMPLEMENTATIONS,
    x,
    log_decay,
    pool,
    chunks,
    rate=rate,
    b=b,
    c=c,
  )


def diagonal_scan_core(
  x: Float[Array, "n c d"],
  log_decay: Float32[Array, "n c d"],
  length: Int32[Array, "n"],
  *,
  initial_state: Float32[Array, "d *e"],
  capture_at: Captures = (),
  rate: Float32[Array, "d e"] | None = None,
  b: Float[Array, "n c e"] | None = None,
  c: Float[Array, "n c e"] | None = None,
  implementation: Choice = None,
) -> differentiable.Scanned:
  """The operation for one request, without a pool: what training uses.

  Differentiable in everything but the integers; it keeps one state per chunk
  for that. Its bits are those of `diagonal_scan`.

  Args:
    x: As in `diagonal_scan`.
    log_decay: As in `diagonal_scan`.
    length: Real tokens of each chunk.
    initial_state: The state before the first chunk.
    capture_at: Numbers of chunks after which to hand out the state.
    rate: As in `diagonal_scan`.
    b: As in `diagonal_scan`.
    c: As in `diagonal_scan`.
    implementation: What computes the forward pass: a name, a config or None.

  Returns:
    y [n c d] in float32, the last state, the captured states [m d ...].

  Raises:
    ValueError: As `diagonal_scan`; or if `capture_at` is not made of distinct
      numbers from 1 to n.
  """
  _check(None, (rate, b, c))  # A state has one axis less than a pool.
  given = {"rate": (rate, "d e"), "b": (b, "n c e"), "c": (c, "n c e")}
  check_core(
    "diagonal_scan_core",
    length,
    (initial_state, "d" if rate is None else "d e"),
    x=(x, "n c d"),
    log_decay=(log_decay, "n c d"),
    **{k: (u, axes) for k, (u, axes) in given.items() if u is not None},
  )

  def packed(
    rate: Array | None, inputs: Any, pool: Array, chunks: Chunks
  ) -> tuple[Array, Array]:
    x, log_decay, b, c = inputs
    return diagonal_scan(
      x,
      log_decay,
      pool,
      chunks,
      rate=rate,
      b=b,
      c=c,
      implementation=implementation,
    )

  return differentiable.scan(
    differentiable.Core(packed, xla.chunk),
    (x, log_decay, b, c),
    initial_state,
    length,
    capture_at,
    constants=rate,
  )


def diagonal_scan_step(
  x: Float[Array, "b d"],
  log_decay: Float32[Array, "b d"],
  pool: Float32[Array, "s d *e"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  rate: Float32[Array, "d e"] | None = None,
  b: Float[Array, "b e"] | None = None,
  c: Float[Array, "b e"] | None = None,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b d"], Float32[Array, "s d *e"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`.

  Args:
    x: Inputs.
    log_decay: Log decay a_t <= 0; -inf resets the channel.
    pool: States, [s d] or [s d e]; donated.
    read: Slot of the state before the token, or ZERO.
    write: Slot that receives the state after it, or NONE; no slot twice, and
      none that another row reads.
    rate: Positive factors of the log decay.
    b: What an input adds, per state channel.
    c: How the state is read out.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    y in float32 and the pool.

  Raises:
    ValueError: as `diagonal_scan`, or if a slot is none.
  """
  _check(pool, (rate, b, c))
  given = {"rate": (rate, "d e"), "b": (b, "b e"), "c": (c, "b e")}
  check_rows(
    "diagonal_scan_step",
    read,
    write,
    x=(x, "b d"),
    log_decay=(log_decay, "b d"),
    pool=(pool, "s d" if rate is None else "s d e"),
    **{k: (u, axes) for k, (u, axes) in given.items() if u is not None},
  )
  check_pool("diagonal_scan_step", pool, jnp.float32)
  log_decay, rate = as_gates(log_decay, rate)
  return dispatch(
    "diagonal_scan_step",
    implementation,
    STEP_IMPLEMENTATIONS,
    x,
    log_decay,
    pool,
    read,
    write,
    rate,
    b,
    c,
  )


def _check(pool: Array | None, selective: tuple[Array | None, ...]) -> None:
  """Refuses half of Mamba's form, and a pool of the other form."""
  given = [x is not None for x in selective]
  if any(given) != all(given):
    raise ValueError(
      "diagonal_scan takes rate, b and c together or none of them; given: "
      f"{[n for n, x in zip(('rate', 'b', 'c'), given) if x]}."
    )
  wanted = 2 + all(given)
  # What is no array is refused with its name, behind this.
  if pool is not None and getattr(pool, "ndim", wanted) != wanted:
    raise ValueError(
      f"the pool of diagonal_scan has shape {pool.shape}; it must have "
      f"{wanted} axes {'with' if all(given) else 'without'} rate, b and c."
    )
