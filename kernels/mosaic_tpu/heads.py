"""The packed scan of operations on states [hv k v]: a few heads a step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import (
  Config,
  Operand,
  Ref,
  packed_scan,
)

KeyHead: TypeAlias = Callable[[Array, Array, Array], tuple[Array, ...]]
"""`(length, q, k)` -> what the value heads that share it have in common."""

ValueHead: TypeAlias = Callable[..., tuple[Array, Array]]
"""`(length, *in common, v, *what else it needs, state)` -> y and the state."""


def scan_heads(
  key_head: KeyHead,
  value_head: ValueHead,
  xs: Sequence[Array],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  config: Config,
  name: str,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """`packed_scan` of an operation on states [hv k v], a few heads a step.

  Heads come before tokens in the kernel, so that a head is a matrix; XLA turns
  the inputs around before it and the outputs after it.

  Args:
    key_head: What a chunk needs of a key head.
    value_head: What it does to the state of a value head.
    xs: q, k and v, then what else a chunk needs: [n c h ...]. A head sees
      [c width] of what has a width, and a row [1 c] of what has one number per
      token.
    pool: States.
    chunks: What each packed chunk reads, writes and holds.
    config: Sizes; the block counts value heads, their key heads go along.
    name: Name of the kernel, in profiles.

  Returns:
    Outputs in the shape of v, and the pool.
  """
  xs = [x.swapaxes(1, 2) for x in xs]
  out = jax.ShapeDtypeStruct(xs[2].shape, jnp.float32)
  # The last two axes of a block are whole, whatever they are.
  xs = [x[:, :, None] if x.ndim == 3 else x for x in xs]
  out, pool = packed_scan(
    functools.partial(_heads, key_head, value_head),
    [Operand(x, 1) for x in xs],
    Operand(out, 1),
    Operand(pool, 1),
    chunks,
    blocks=xs[2].shape[1] // config.block,
    config=config,
    name=name,
  )
  return out.swapaxes(1, 2), pool


def _heads(
  key_head: KeyHead,
  value_head: ValueHead,
  carry: Ref,
  xs: Sequence[Ref],
  y: Ref,
  length: Array,
) -> None:
  """The cell of `scan_heads`: all heads of a step at once.

  Operation by operation, not head by head: the compiler keeps to the order of a
  program, and what one head waits for is filled by the others (see
  `benchmarks/aot_schedule.py`).

  Args:
    key_head: What a chunk needs of a key head.
    value_head: What a chunk does to the state of a value head.
    carry: States of the value heads, [1 hv k v]; updated.
    xs: q and k of their key heads, or of the one that they share with other
      steps; then what belongs to value heads.
    y: Outputs, [hv c v].
    length: How many tokens are real.
  """
  q, k, *own = (x[...] for x in xs)
  common = jax.vmap(functools.partial(key_head, length))(q, k)
  groups = carry.shape[1] // k.shape[0]
  common = [jnp.repeat(x, groups, axis=0) for x in common]
  advance = jax.vmap(functools.partial(value_head, length))
  y[...], carry[0] = advance(*common, *own, carry[0])


def implementation(run: Callable[..., Any]) -> Implementation:
  """The implementation of an operation that is such a scan.

  Args:
    run: A function of q, k, v, what else a chunk needs, pool and chunks.
  """

  def refusal(
    device: Device, config: Config, *arguments: Any, precision: lax.Precision
  ) -> str | None:
    q, k, v, *_, pool, _ = arguments
    return fit.refusal_of_heads(config, q, k, v, pool, precision)

  def heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
    return Config(block=fit.heads_per_step(device, *arguments[1:3]))

  return Implementation(Config, run, refusal, heuristic)
