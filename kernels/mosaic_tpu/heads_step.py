"""One token of matrix states, on TPU: a state is read, advanced and written.

gated_delta_rule, kimi_delta_attention and linear_attention in decoding:

    S' = exp(a) S                 a per head, or per key channel
    u  = beta (v - S'^T k)        a delta rule; v itself without one
    S  = S' + k u^T
    o  = S'^T q + (k^T q) u       that is S^T q

A step is bound by memory, and a product of one row leaves a matrix unit empty:
everything is broadcasts and sums, of whole registers and in float32. Keys lie
along the sublanes of a state and values along its lanes, so a sum over keys is
one of registers, in an order that k alone decides. Queries and keys come as
rows; all of a step are turned into columns at once, and a head's column is
permuted into all lanes, once for the value heads that share it. (A column made
by a sum over a mask takes the same unit three times as long.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Operand, Ref
from sparse_prefix_jax.kernels.mosaic_tpu.step import (
  StepConfig,
  StepGrid,
  advance,
)

_ENOUGH_BYTES = 2**20
"""States of a step: a microsecond to come, and as long to leave."""
_MOST_BYTES = 4 * 2**20
"""Three of these, and little else, fill what VMEM kernels are given."""
_MOST_OF_ONE_HEAD = 3 * 2**20
"""What a head computes with takes as much as its state, and more than once."""


def step_implementation(name: str) -> Implementation:
  """The step of an operation on states [s hv k v].

  It is called with q, k, v, log_decay, beta if it is a delta rule, pool, read
  and write.

  Args:
    name: What a profile calls the kernel.
  """

  def run(
    *arguments: Array, config: StepConfig
  ) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
    *xs, pool, read, write = arguments
    return _step(xs, pool, (read, write), config, name)

  return Implementation(StepConfig, run, _refusal, _heuristic)


def _refusal(
  device: Device, config: StepConfig, *arguments: Array
) -> str | None:
  """Why the call does not fit a TPU, or None."""
  del device
  q, k, v, *gates, pool, _, _ = arguments
  width, heads, groups = q.shape[2], v.shape[1], v.shape[1] // k.shape[1]
  if width % 64 or v.shape[2] % 64:
    return f"widths {width} and {v.shape[2]} are not multiples of 64"
  block, cores = config.block, config.cores
  if block < 1 or not fit.divides_heads(block, heads, groups):
    return (
      f"block {block} does not divide {heads} value heads of {k.shape[1]} key "
      "heads into whole groups or equal parts of one"
    )
  if block > fit.LANES:
    return f"takes {fit.LANES} value heads of a step at most, not {block}"
  if cores < 1 or heads // block % cores:
    return f"{cores} cores do not divide {heads // block} blocks of value heads"
  taken = block * _state_bytes(q, v)
  most = _MOST_BYTES if block > 1 else _MOST_OF_ONE_HEAD
  if taken > most:
    return f"states of a step take {taken} bytes, above {most}"
  reason = fit.refusal_of_types((q, k, v), lax.Precision.HIGHEST)
  return reason or fit.refusal_of_state(pool) or _refusal_of_gates(gates)


def _refusal_of_gates(gates: list[Array]) -> str | None:
  """Why gates of this type do not fit, or None."""
  told = [str(x.dtype) for x in gates if x.dtype != jnp.float32]
  return f"gates are {told[0]} and must be float32" if told else None


def _heuristic(
  device: Device, q: Array, k: Array, v: Array, *_: Array
) -> StepConfig:
  """Chooses the heads of a step; how many rows there are must not be asked.

  As many as fill `_ENOUGH_BYTES`: with more of them the first states come, and
  the last leave, while nothing is computed.
  """
  heads, groups = v.shape[1], v.shape[1] // k.shape[1]
  cores = fit.cores_of(device, heads)
  fitting = (
    block
    for block in range(heads // cores, 0, -1)
    if block <= fit.LANES
    and heads // cores % block == 0
    and fit.divides_heads(block, heads, groups)
    and block * _state_bytes(q, v) <= _ENOUGH_BYTES
  )
  return StepConfig(block=next(fitting, 1), cores=cores)


def _state_bytes(q: Float[Array, "b h k"], v: Float[Array, "b hv v"]) -> int:
  """Bytes of the state of one head in VMEM, whose rows fill registers."""
  lanes = -(-v.shape[2] // fit.LANES) * fit.LANES
  return 4 * q.shape[2] * lanes


def _step(
  xs: list[Array],
  pool: Float32[Array, "s hv k v"],
  slots: tuple[Array, Array],
  config: StepConfig,
  name: str,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """Advances b rows by one token in one launch, with the pool in place.

  Args:
    xs: q, k, v, log_decay, and beta of a delta rule.
    pool: States, donated.
    slots: What rows read and write.
    config: Sizes of a step.
    name: What a profile calls the kernel.

  Returns:
    The outputs and the pool.
  """
  b, heads, width = xs[2].shape
  blocks = heads // config.block

  def split(x: Array) -> Operand:
    """What a block has of heads is whole along the last two axes."""
    count, width = x.shape[1], x.shape[2:]
    blocks = min(heads // config.block, count)
    one = (1, count // blocks) if not width else (count // blocks, *width)
    return Operand(x.reshape(b, blocks, *one), 1)

  out = jax.ShapeDtypeStruct((b, blocks, config.block, width), jnp.float32)

  out, pool = advance(
    functools.partial(_heads, xs[3].ndim == 3),
    [split(x.astype(jnp.float32)) for x in xs],
    Operand(out, 1),
    Operand(pool, 1),
    slots,
    StepGrid(config.cores, b, blocks // config.cores, 1),
    config,
    name,
  )
  return out.reshape(b, heads, width), pool


def _heads(per_channel: bool, states: Ref, xs: Any, y: Ref) -> None:
  """Advances the value heads of a step by a token, key head by key head.

  Args:
    per_channel: Whether key channels have decays of their own.
    states: The states, [1 block k v]; updated.
    xs: q and k of the key heads of the step [1 1 h k]; of its value heads v
      [1 1 block v], the log decay, a row [1 1 1 block] or channels
      [1 1 block k], and beta of a delta rule, a row.
    y: Outputs, [1 1 block v].
  """
  q_ref, k_ref, v_ref, log_decay_ref, *beta_ref = (x.at[0, 0] for x in xs)
  q, k = (_stood_up(ref[...]) for ref in (q_ref, k_ref))
  decay = jnp.exp(log_decay_ref[...])
  decay = _stood_up(decay) if per_channel else decay
  betas = [ref[...] for ref in beta_ref]
  heads, (value_heads, width) = q_ref.shape[0], v_ref.shape

  def key_head(index: Array, _: None) -> None:
    query, key = (_of_head(x, index, width) for x in (q, k))
    for of_key in range(value_heads // heads):
      head = index * (value_heads // heads) + of_key
      here = pl.ds(head, 1)
      gates = [_of_head(x, head, width) for x in (decay, *betas)]
      token = query, key, v_ref[here], *gates
      y[0, 0, here], states[0, head] = _advance(states[0, head], *token)

  lax.fori_loop(0, heads, key_head, None)


def _stood_up(x: Float32[Array, "heads k"]) -> Float32[Array, "k lanes"]:
  """The rows of heads as columns, as many as a register has lanes."""
  missing = fit.LANES - x.shape[0]
  return jnp.pad(x, ((0, missing), (0, 0))).T


def _of_head(
  x: Float32[Array, "r heads"], head: Array, width: int
) -> Float32[Array, "r v"]:
  """The column of a head in each of `width` lanes: what states are scaled by.

  Args:
    x: A column per head. If they have more than one number, they are as many as
      a register has lanes, which are permuted.
    head: Which.
    width: Values of a head.
  """
  if x.shape[0] == 1:
    chosen = jnp.where(algebra.iota(x.shape, 1) == head, x, 0.0)
    return jnp.sum(chosen, axis=1, keepdims=True)
  everywhere = jnp.broadcast_to(head, x.shape)
  column = jnp.take_along_axis(x, everywhere, axis=1)
  return jnp.concatenate([column] * -(-width // fit.LANES), axis=1)[:, :width]


def _advance(
  state: Float32[Array, "k v"],
  q: Float32[Array, "k v"],
  k: Float32[Array, "k v"],
  v: Float32[Array, "1 v"],
  decay: Float32[Array, "r _"],
  beta: Float32[Array, "1 1"] | None = None,
) -> tuple[Float32[Array, "1 v"], Float32[Array, "k v"]]:
  """Takes one token of a head; q and k are the same for all values.

  Args:
    state: The state before the token.
    q: The query.
    k: The key.
    v: The values.
    decay: exp(a), of the head or of its key channels.
    beta: Strength of a delta rule, or None.

  Returns:
    The output, and the state after the token.
  """
  # Zero where the decay is, whatever a state holds.
  state = algebra.decayed(decay, state)
  if beta is not None:
    v = beta * (v - jnp.sum(state * k, axis=0, keepdims=True))
  # Not the sum over the new state: it would have to wait for the update.
  out = jnp.sum(state * q, axis=0, keepdims=True)
  out = out + jnp.sum(q * k, axis=0, keepdims=True) * v
  return out, state + k * v
