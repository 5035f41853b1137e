"""The sequential half of the matrix-valued recurrences, on GPU.

gated_delta_rule, kimi_delta_attention and linear_attention differ in what can
be computed for all chunks and heads at once, because it does not depend on the
state: decays, products of keys with keys and queries, the triangular solve.
What is left is one scan, and it is the same for all of them:

    U  = X_v - X_k S                       [c v]
    O  = e_o * (Q S) + P U                 [c v]
    S' = e_s * S + K^T (e_u * U)           [k v]

with rows scaled by the vectors e_o, e_u [c] and e_s [k]. linear_attention has
no X_k. kimi_delta_attention has its decays in Q and K, and e_o = e_u = 1.

A program owns some value columns of one head of one segment (see `plan`), holds
its part of the state in float32 registers from the first chunk to the last,
restored from a slot and captured to slots on the way. So nothing of size k x v
moves per chunk but what is captured. The operands of the next chunks are on
their way to shared memory while this one is computed: the latency of a chunk is
that of its dependent products.

There are two forms of it. `state_transposed.py` holds S^T, which products take
from registers: two groups of products per chunk. It needs products of a
warpgroup and 64 value columns, and 256 keys leave it no registers. Elsewhere
`state_shared.py` brings S to its products by way of shared memory.

Precision. Products take bfloat16. The state goes into them as the sum of two
bfloat16 parts, U likewise: with one, an error of 2^-9 of the state would feed
back through U at every chunk, and without decay it adds up.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.kernels.mosaic_gpu import state_shared, state_transposed
from sparse_prefix_jax.kernels.mosaic_gpu.devices import gpu_of
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  CHUNK,
  MosaicGpuConfig,
  Ref,
  launch,
  new,
)
from sparse_prefix_jax.kernels.mosaic_gpu.segments import plan, programs
from sparse_prefix_jax.kernels.mosaic_gpu.state_factors import Factors

__all__ = ["Factors", "scan"]


def scan(
  factors: Factors,
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """Restores, scans and captures in one launch, with the pool in place.

  Args:
    factors: Factors of all chunks.
    pool: States, donated.
    chunks: What each chunk reads, writes and holds.
    config: `columns` per program and `stages` of loads.
    name: What a profile calls the kernel.

  Returns:
    The outputs, zero past a chunk's length, and the pool.
  """
  n, _, heads, value_width = factors.values.shape
  out = new(n, CHUNK, heads, value_width, dtype=jnp.float32)
  gpu, width = gpu_of(current_device()), factors.q.shape[3]
  transposed = state_transposed.takes(gpu, width, config.columns)
  if transposed:
    program = state_transposed.TransposedState
    scratch = state_transposed.transposed_buffers(factors, config)
  else:
    program = state_shared.SharedState
    scratch = state_shared.shared_buffers(factors, config)

  def body(operands: Ref, results: Ref, buffers: Ref) -> None:
    fields: Any = *operands, *results, buffers, config
    program(*fields).run()

  out, pool = launch(
    body,
    (plan(chunks), factors),
    [out, pool],
    scratch,
    grid={
      "segment": programs(n),
      "head": heads,
      "tile": value_width // config.columns,
    },
    config=config,
    name=name,
    apart=transposed,
  )
  return out, pool
