"""Heads of Gated DeltaNet from its projections, in XLA operations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.gated_delta_rule import xla


class ProjectedHeads(NamedTuple):
  """The inputs of the delta rule, in its order; rows are tokens.

  Attributes:
    q: Queries, scaled. [rows h k]
    k: Keys. [rows h k]
    v: Values. [rows hv v]
    log_decay: Log decays. [rows hv]
    beta: Strengths. [rows hv]
  """

  q: Float[Array, "rows h k"]
  k: Float[Array, "rows h k"]
  v: Float[Array, "rows hv v"]
  log_decay: Float32[Array, "rows hv"]
  beta: Float32[Array, "rows hv"]


def project_heads(
  mixed: Float32[Array, "rows d"],
  gates: Float32[Array, "rows gates"],
  log_rate: Float32[Array, "hv"],
  decay_bias: Float32[Array, "hv"],
  *,
  key_heads: int,
  widths: tuple[int, int],
  beta_scale: float,
  dtype: str,
) -> ProjectedHeads:
  """Makes heads from convolved projections, and gates from theirs.

  Args:
    mixed: Queries, keys and values side by side, after silu.
    gates: Decays and strengths side by side.
    log_rate: Its exponential is what decays are multiplied by.
    decay_bias: What is added to decays before the softplus.
    key_heads: Heads h of queries and keys.
    widths: Widths k and v of a head.
    beta_scale: What strengths are multiplied by.
    dtype: Of queries, keys and values.

  Returns:
    The inputs of the delta rule.
  """
  (width, value_width), keys = widths, key_heads * widths[0]
  decay, beta = jnp.split(gates, 2, axis=-1)
  rate = jnp.exp(log_rate)[None]
  log_decay = -rate * jax.nn.softplus(decay + decay_bias[None])
  q, k, v = jnp.split(mixed, [keys, 2 * keys], axis=-1)
  q, k = (_unit(u.reshape(-1, key_heads, width)) for u in (q, k))
  v = v.reshape(-1, log_rate.shape[0], value_width)
  q = q * width**-0.5
  q, k, v = (u.astype(dtype) for u in (q, k, v))
  beta = jax.nn.sigmoid(beta)
  beta = beta if beta_scale == 1 else beta * beta_scale
  return ProjectedHeads(q, k, v, log_decay, beta)


def _unit(x: Float32[Array, "rows h k"]) -> Float32[Array, "rows h k"]:
  return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def gate_product(
  x: Float[Array, "rows i"], weight: Float[Array, "gates i"], precision: str
) -> Float32[Array, "rows gates"]:
  """Projects tokens to the numbers that decays and strengths are made from.

  Args:
    x: Inputs of the layer.
    weight: A row for each decay, then one for each strength.
    precision: Of the product, as `jax.lax.Precision` names it.
  """
  return lax.dot_general(
    x,
    weight,
    (((1,), (1,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def projected_step(
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
  step: Callable[..., tuple[Array, Array]] = xla.step,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Runs `gated_delta_rule_projected_step`, whose arguments these are.

  Args:
    mixed: As in `gated_delta_rule_projected_step`.
    x: As there.
    weight: As there.
    log_rate: As there.
    decay_bias: As there.
    pool: As there.
    read: As there.
    write: As there.
    key_heads: As there.
    beta_scale: As there.
    dtype: As there.
    precision: As there.
    step: What takes the token with the heads, as `gated_delta_rule_step` does.

  Returns:
    The outputs and the pool.
  """
  heads = project_heads(
    mixed,
    gate_product(x, weight, precision),
    log_rate,
    decay_bias,
    key_heads=key_heads,
    widths=(pool.shape[2], pool.shape[3]),
    beta_scale=beta_scale,
    dtype=dtype,
  )
  return step(*heads, pool, read, write)
