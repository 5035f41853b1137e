"""The backward pass of lattice attention, chunk by chunk, from its inputs.

With P = softmax(Q K^T) of a chunk's rows over all keys that they see:

    dV += P^T dO,  dS = P * (dO V^T - rowsum(P * dO V^T)),
    dQ = dS K,  dK += dS^T Q

The weights of one chunk are computed again from queries and keys; nothing but
inputs is kept from the forward pass.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32


@dataclasses.dataclass(frozen=True)
class Core:
  """How to run the forward pass, and what the backward pass must know.

  Attributes:
    forward: `(q, keys, values, length) -> out`, keys and values of all chunks.
    window: Keys that a token sees, or None.
    precision: Precision of the products.
  """

  forward: Callable[[Array, Array, Array, Array], Array]
  window: int | None
  precision: lax.Precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  core: Core,
  q: Float[Array, "n c h k"],
  keys: Float[Array, "pages c hkv k"],
  values: Float[Array, "pages c hkv k"],
  length: Int32[Array, "n"],
) -> Float32[Array, "n c h k"]:
  """Attends from the last n chunks of one request to all of its chunks.

  Args:
    core: What to run.
    q: Queries, scaled.
    keys: Keys of all chunks, in order; the last n are the queries' own.
    values: Values of all chunks, in the same order.
    length: Real tokens of the last n chunks.
  """
  return core.forward(q, keys, values, length)


def _forward(
  core: Core, q: Array, keys: Array, values: Array, length: Array
) -> tuple[Array, tuple[Array, ...]]:
  out = core.forward(q, keys, values, length)
  return out, (q, keys, values, length)


def _backward(
  core: Core, kept: tuple[Array, ...], d_out: Array
) -> tuple[Any, ...]:
  q, keys, values, length = kept
  n, size = q.shape[:2]
  past = keys.shape[0] - n
  # Padding may hold anything: it is selected away, and so is its gradient.
  real = jnp.arange(size, dtype=jnp.int32)[None] < length[:, None]
  whole = jnp.concatenate([jnp.ones((past, size), bool), real])
  q, d_out = (_select(real, x) for x in (q, d_out))
  keys, values = (
    _select(whole, x).reshape(-1, *x.shape[2:]) for x in (keys, values)
  )

  def chunk(carry: tuple[Array, Array], x: Any) -> tuple[Any, Array]:
    q, position, d_out = x
    attend = functools.partial(
      attend_chunk,
      position=position,
      window=core.window,
      precision=core.precision,
    )
    _, pull = jax.vjp(attend, q, keys, values)
    d_q, d_keys, d_values = pull(d_out)
    return (carry[0] + d_keys, carry[1] + d_values), d_q

  position = (past + jnp.arange(n, dtype=jnp.int32)) * size
  # Sums over chunks are float32, whatever the keys are.
  zeros = jnp.zeros(keys.shape, jnp.float32)
  sums, d_q = lax.scan(chunk, (zeros, zeros), (q, position, d_out))
  d_keys, d_values = (
    x.reshape(-1, size, *x.shape[1:]).astype(keys.dtype) for x in sums
  )
  return d_q, _select(whole, d_keys), _select(whole, d_values), None


attend.defvjp(_forward, _backward)


def _select(real: Array, x: Array) -> Array:
  """Keeps x where tokens are real, and selects the rest to zero."""
  return jnp.where(real[:, :, None, None], x, jnp.zeros_like(x))


def attend_chunk(
  q: Float[Array, "c h k"],
  keys: Float[Array, "t hkv k"],
  values: Float[Array, "t hkv v"],
  *,
  position: Int32[Array, ""],
  window: int | None,
  precision: lax.Precision,
) -> Float32[Array, "c h v"]:
  """Computes the softmax attention of one chunk to all tokens, in float32.

  Args:
    q: Queries, scaled.
    keys: Keys of all tokens of the request, in order.
    values: Values of the same.
    position: Where the first query stands among them.
    window: Keys that a token sees, or None.
    precision: Precision of the products.
  """
  q32, keys, values = (x.astype(jnp.float32) for x in (q, keys, values))
  q32 = q32.reshape(q.shape[0], keys.shape[1], -1, q.shape[2])
  row = position + jnp.arange(q.shape[0], dtype=jnp.int32)[:, None]
  key = jnp.arange(keys.shape[0], dtype=jnp.int32)[None]
  seen = key <= row
  if window is not None:
    seen &= key > row - window
  product = functools.partial(jnp.einsum, precision=precision)
  scores = product("chgk,thk->hgct", q32, keys)
  weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf))
  return product("hgct,thv->chgv", weights, values).reshape(*q.shape[:2], -1)
