"""Root-mean-square and L2 norms, computed in float32."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32


def rms_norm(
  x: Float[Array, "*rows d"], weight: Float[Array, "d"], eps: float
) -> Float[Array, "*rows d"]:
  """Computes x / sqrt(mean(x^2) + eps) * (1 + weight), row by row.

  Args:
    x: Rows to normalise over their last axis.
    weight: A factor per channel, stored minus one, in any float dtype.
    eps: What is added to the mean square.

  Returns:
    The normalised rows, computed in float32 and rounded once to x's dtype.
  """
  scale = 1.0 + weight.astype(jnp.float32)
  return (_normalize(x, eps) * _row(scale, x)).astype(x.dtype)


def residual_norm(
  x: Float[Array, "*rows d"], weight: Float[Array, "d"], eps: float
) -> Float[Array, "*rows d"]:
  """Applies `rms_norm` to all rows of a program, between two barriers.

  With nothing fused into it, a row has the same bits for every number of rows
  from 64 to 1,024.
  """
  x = lax.optimization_barrier(x)
  with jax.named_scope("norms"):
    normed = rms_norm(x, weight, eps)
  return lax.optimization_barrier(normed)


def gated_rms_norm(
  x: Float[Array, "*rows d"],
  gate: Float[Array, "*rows d"],
  weight: Float[Array, "d"],
  eps: float,
) -> Float[Array, "*rows d"]:
  """Computes weight * x / sqrt(mean(x^2) + eps) * silu(gate), row by row.

  The result is rounded to the gate's dtype after the norm, after the weight
  and after the gate, as the checkpoints were trained. The weight is not centred
  on zero here.
  """
  normed = _normalize(x, eps).astype(gate.dtype)
  scaled = _row(weight, normed).astype(gate.dtype) * normed
  gated = scaled.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
  return gated.astype(gate.dtype)


def l2_norm(x: Float32[Array, "*rows k"]) -> Float32[Array, "*rows k"]:
  """Computes x / sqrt(sum(x^2) + 1e-6), for keys and queries of delta rules."""
  return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _normalize(x: Float[Array, "*rows d"], eps: float) -> Array:
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _row(weight: Float[Array, "d"], like: Float[Array, "*rows d"]) -> Array:
  return weight.reshape((1,) * (like.ndim - 1) + weight.shape)
