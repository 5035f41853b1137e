"""gated_delta_rule: what layers call, whatever computes it."""

import math
from typing import Any

from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import differentiable
from sparse_prefix_jax.kernels.checks import (
  as_gates,
  as_precision,
  check_heads,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Captures, Chunks
from sparse_prefix_jax.kernels.gated_delta_rule import (
  mosaic_gpu,
  mosaic_tpu,
  projected_mosaic_gpu,
  projected_mosaic_tpu,
  projected_xla,
  xla,
)
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.slot_checks import (
  check_matrix_core,
  check_rows,
  check_slots,
)

_PRECISION = lax.Precision.HIGHEST
IMPLEMENTATIONS = (
  mosaic_gpu.IMPLEMENTATION,
  mosaic_tpu.IMPLEMENTATION,
  plain(xla.packed),
)
STEP_IMPLEMENTATIONS = (mosaic_gpu.STEP, mosaic_tpu.STEP, plain(xla.step))
_DTYPES = "float32", "bfloat16", "float16"
PROJECTED_STEP_IMPLEMENTATIONS = (
  projected_mosaic_gpu.PROJECTED_STEP,
  projected_mosaic_tpu.PROJECTED_STEP,
  plain(projected_xla.projected_step),
)


def gated_delta_rule(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """S_t = exp(a_t) S_{t-1} + k_t u_t^T, u_t = beta_t (v_t - k_t exp(a_t) S).

  Restores each request from its slot, scans its chunks and captures the state
  after any subset of them, in one pass.

  Args:
    q: Queries, scaled by the caller.
    k: Keys.
    v: Values; hv is a multiple of h.
    log_decay: Log decay a_t <= 0; -inf resets the state.
    beta: Strength of the update, 0 to 1.
    pool: States, donated: captured states appear in the result.
    chunks: What each packed chunk reads, writes and holds.
    precision: Precision of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool. Rows past a chunk's length are unspecified (and finite).

  Raises:
    ValueError: If shapes do not belong together, or if no implementation fits,
      with the reason of each.

  Example:
    >>> import jax.numpy as jnp
    >>> chunks = Chunks(*jnp.array([[-1], [0], [2], [0], [0]]))  # from ZERO
    >>> x, gates = jnp.ones((1, 4, 1, 1)), jnp.zeros((1, 4, 1))
    >>> pool = jnp.zeros((1, 1, 1, 1))
    >>> out, pool = gated_delta_rule(x, x, x, gates, gates + 0.5, pool, chunks)
    >>> out[0, :2, 0, 0].tolist(), pool.item()
    ([0.5, 0.75], 0.75)
  """
  sizes = check_shapes(
    "gated_delta_rule",
    chunks,
    q=(q, "n c h k"),
    k=(k, "n c h k"),
    v=(v, "n c hv v"),
    log_decay=(log_decay, "n c hv"),
    beta=(beta, "n c hv"),
    pool=(pool, "s hv k v"),
  )
  check_heads("gated_delta_rule", sizes, pool)
  check_slots("gated_delta_rule", chunks, sizes)
  log_decay, beta = as_gates(log_decay, beta)
  return dispatch(
    "gated_delta_rule",
    implementation,
    IMPLEMENTATIONS,
    q,
    k,
    v,
    log_decay,
    beta,
    pool,
    chunks,
    precision=as_precision("gated_delta_rule", precision),
  )


def gated_delta_rule_core(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  beta: Float32[Array, "n c hv"],
  length: Int32[Array, "n"],
  *,
  initial_state: Float32[Array, "hv k v"],
  capture_at: Captures = (),
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> differentiable.Scanned:
  """The operation for one request, without a pool: what training uses.

  Differentiable in the inputs, the initial and the captured states; it keeps
  one state per chunk for that. Its bits are those of `gated_delta_rule`.

  Args:
    q: As in `gated_delta_rule`.
    k: As in `gated_delta_rule`.
    v: As in `gated_delta_rule`.
    log_decay: As in `gated_delta_rule`.
    beta: As in `gated_delta_rule`.
    length: Real tokens of each chunk.
    initial_state: The state before the first chunk.
    capture_at: Numbers of chunks after which to hand out the state.
    precision: Precision of the products.
    implementation: What computes the forward pass: a name, a config or None.

  Returns:
    Outputs [n c hv v], the last state, the captured states [m hv k v].

  Raises:
    ValueError: As `gated_delta_rule`; or if `capture_at` is not made of
      distinct numbers from 1 to n.
  """
  check_matrix_core(
    "gated_delta_rule_core",
    length,
    initial_state,
    *(q, k, v),
    log_decay=(log_decay, "n c hv"),
    beta=(beta, "n c hv"),
  )
  core = differentiable.core_of(
    gated_delta_rule,
    xla.chunk,
    precision=precision,
    implementation=implementation,
  )
  return differentiable.scan(
    core,
    (q, k, v, log_decay, beta),
    initial_state,
    length,
    capture_at,
  )


def gated_delta_rule_step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv"],
  beta: Float32[Array, "b hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`.

  Args:
    q: Queries, scaled by the caller.
    k: Keys.
    v: Values; hv is a multiple of h.
    log_decay: Log decay a_t <= 0; -inf resets the state.
    beta: Strength of the update, 0 to 1.
    pool: States, donated: the new ones appear in the result.
    read: Slot of the state before the token, or ZERO.
    write: Slot that receives the state after it, or NONE; no slot twice, and
      none that another row reads.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool.

  Raises:
    ValueError: Shapes do not belong together, a slot is none, or no
      implementation fits, with the reason of each.
  """
  sizes = check_rows(
    "gated_delta_rule_step",
    read,
    write,
    q=(q, "b h k"),
    k=(k, "b h k"),
    v=(v, "b hv v"),
    log_decay=(log_decay, "b hv"),
    beta=(beta, "b hv"),
    pool=(pool, "s hv k v"),
  )
  check_heads("gated_delta_rule_step", sizes, pool)
  log_decay, beta = as_gates(log_decay, beta)
  return dispatch(
    "gated_delta_rule_step",
    implementation,
    STEP_IMPLEMENTATIONS,
    q,
    k,
    v,
    log_decay,
    beta,
    pool,
    read,
    write,
  )


def gated_delta_rule_projected_step(
  mixed: Float32[Array, "b d"],
  x: Float[Array, "b i"],
  weight: Float[Array, "gates i"],
  log_rate: Float32[Array, "hv"],
  decay_bias: Float32[Array, "hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  key_heads: int,
  beta_scale: float,
  dtype: str,
  precision: str,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """One token of b running sequences, from the projections of a layer.

  The heads of Gated DeltaNet are made from them first: q and k of unit length,
  q scaled by k^-1/2; a = -exp(log_rate) softplus(decay + decay_bias), beta a
  sigmoid. On a GPU all of it is one kernel.

  Args:
    mixed: Convolved projections to queries, keys and values, side by side,
      after silu; d = 2 h k + hv v.
    x: What decays and strengths are projected from.
    weight: Of that projection: a row for each decay, then for each strength.
    log_rate: The logarithm of what decays are multiplied by.
    decay_bias: What is added to decays before the softplus.
    pool: States, donated: the new ones appear in the result.
    read: Slot of the state before the token, or ZERO.
    write: Slot that receives the state after it, or NONE; no slot twice, and
      none that another row reads.
    key_heads: Heads h of queries and keys.
    beta_scale: What strengths are multiplied by.
    dtype: What queries, keys and values are rounded to.
    precision: Of the projection to decays and strengths.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool.

  Raises:
    ValueError: Shapes do not belong together, a slot is none, or no
      implementation fits, with the reason of each.
  """
  name = "gated_delta_rule_projected_step"
  sizes = check_rows(
    name,
    read,
    write,
    mixed=(mixed, "b d"),
    x=(x, "b i"),
    weight=(weight, "g i"),
    log_rate=(log_rate, "hv"),
    decay_bias=(decay_bias, "hv"),
    pool=(pool, "s hv k v"),
  )
  _check_choices(key_heads, beta_scale, dtype)
  as_precision(name, precision)
  mixed, log_rate, decay_bias = as_gates(mixed, log_rate, decay_bias)
  check_heads(name, sizes | {"h": key_heads}, pool)
  columns = 2 * key_heads * sizes["k"] + sizes["hv"] * sizes["v"]
  if sizes["d"] != columns or sizes["g"] != 2 * sizes["hv"]:
    raise ValueError(
      f"mixed is {mixed.shape} and weight is {weight.shape}; with {key_heads} "
      f"key heads and a pool {pool.shape} they must have {columns} columns and "
      f"{2 * sizes['hv']} rows."
    )
  return dispatch(
    name,
    implementation,
    PROJECTED_STEP_IMPLEMENTATIONS,
    mixed,
    x,
    weight,
    log_rate,
    decay_bias,
    pool,
    read,
    write,
    key_heads=key_heads,
    beta_scale=beta_scale,
    dtype=dtype,
    precision=precision,
  )


def _check_choices(key_heads: Any, beta_scale: Any, dtype: Any) -> None:
  """Refuses what no projection of a layer has."""
  whole = isinstance(key_heads, int) and not isinstance(key_heads, bool)
  if not whole or key_heads < 1:
    raise ValueError(
      f"key_heads is {key_heads!r}; it must be an int, at least 1."
    )
  if not isinstance(beta_scale, int | float) or not math.isfinite(beta_scale):
    raise ValueError(
      f"beta_scale is {beta_scale!r}; it must be a finite number."
    )
  if dtype not in _DTYPES:
    raise ValueError(f"dtype is {dtype!r}; it must be one of {_DTYPES}.")
