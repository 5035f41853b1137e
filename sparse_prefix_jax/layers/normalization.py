"""Root-mean-square and L2 norms, computed in float32."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import in_fixed_rows
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.layers.choices import check_values


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


def scaled_rms_norm(
  x: Float[Array, "*rows d"], weight: Float[Array, "d"], eps: float
) -> Float[Array, "*rows d"]:
  """Computes weight * (x / sqrt(mean(x^2) + eps)), row by row.

  The result is rounded to x's dtype after the norm and after the weight, as
  the checkpoints of this form were trained.

  Args:
    x: Rows to normalise over their last axis.
    weight: A factor per channel, as it is stored, in x's dtype.
    eps: What is added to the mean square.

  Returns:
    The normalised rows, in x's dtype.
  """
  normed = _normalize(x, eps).astype(x.dtype)
  return _row(weight, normed).astype(x.dtype) * normed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
  """Static choices of a norm of the residual stream.

  Attributes:
    centred: Whether the weight is stored minus one (`rms_norm`), or as it is
      (`scaled_rms_norm`).
    eps: What is added to the mean square.

  Raises:
    ValueError: If eps is no number above 0.

  Example:
    >>> Norm(centred=False).weight(2, "float32")[...].tolist()
    [1.0, 1.0]
  """

  centred: bool = True
  eps: float = 1e-6

  def __post_init__(self) -> None:
    """Refuses an eps that is no number above 0."""
    check_values(self)

  def weight(self, width: int, dtype: str) -> nnx.Param[Array]:
    """Makes the weight that changes nothing: a factor of 1 per channel."""
    make = jnp.zeros if self.centred else jnp.ones
    return nnx.Param(make(width, jnp.dtype(dtype)))


def residual_norm(
  x: Float[Array, "*rows d"], weight: Float[Array, "d"], norm: Norm
) -> Float[Array, "*rows d"]:
  """Applies a norm to all rows of a program, between two barriers.

  With nothing fused into it, a row has the same bits on a CPU for every number
  of rows from 64 to 1,024. On a GPU its sum depends on that number, so chunks
  are padded to rows of which there are always as many. A decode step, [b d],
  has one number of rows by itself.
  """
  apply = rms_norm if norm.centred else scaled_rms_norm

  def normed(x: Array) -> Array:
    x = barrier(x)
    with jax.named_scope("norms"):
      return barrier(apply(x, weight, norm.eps))

  if x.ndim == 2 or current_device().platform != "gpu":
    return normed(x)
  return in_fixed_rows(normed, x.reshape(-1, x.shape[-1])).reshape(x.shape)


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


def gate_before_rms_norm(
  x: Float32[Array, "rows d"],
  gate: Float[Array, "rows d"],
  weight: Float[Array, "d"],
  eps: float,
  groups: int,
) -> Float[Array, "rows d"]:
  """Computes weight * norm(x * silu(gate)), a mean square for each group.

  Args:
    x: Rows to gate and to normalise.
    gate: What silu opens.
    weight: A factor per channel, as it is stored.
    eps: What is added to a mean square.
    groups: Parts of equal width that a row is normalised in.

  Returns:
    The rows, computed in float32 and rounded once to the gate's dtype.
  """
  opened = x * jax.nn.silu(gate.astype(jnp.float32))
  return grouped_rms_norm(opened, weight, eps, groups).astype(gate.dtype)


def grouped_rms_norm(
  x: Float32[Array, "rows d"],
  weight: Float[Array, "d"],
  eps: float,
  groups: int,
) -> Float32[Array, "rows d"]:
  """Computes weight * norm(x), with a mean square for each group of a row.

  Args:
    x: Rows to normalise.
    weight: A factor per channel, as it is stored.
    eps: What is added to a mean square.
    groups: Parts of equal width that a row is normalised in.

  Returns:
    The rows, in float32.
  """
  normed = _normalize(x.reshape(x.shape[0], groups, -1), eps).reshape(x.shape)
  return normed * _row(weight.astype(jnp.float32), x)


def l2_norm(x: Float32[Array, "*rows k"]) -> Float32[Array, "*rows k"]:
  """Computes x / sqrt(sum(x^2) + 1e-6), for keys and queries of delta rules."""
  return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _normalize(x: Float[Array, "*rows d"], eps: float) -> Array:
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _row(weight: Float[Array, "d"], like: Float[Array, "*rows d"]) -> Array:
  return weight.reshape((1,) * (like.ndim - 1) + weight.shape)
