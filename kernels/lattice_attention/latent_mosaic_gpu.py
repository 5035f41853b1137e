"""Attention to latents on GPU: the kernels of lattice attention with one pool.

Values are the first channels of the keys of a page, so that each latent is
fetched once. All heads share it. What bounds a program is its registers: of a
prefill two share a head, each with half of the values, and of a step each takes
16 heads; what one of them fetches the others find in the L2 cache.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention.chunks_mosaic_gpu import (
  parts_of,
)
from sparse_prefix_jax.kernels.lattice_attention.decode_mosaic_gpu import (
  attend_rows,
  bytes_of_rows,
  heads_of_program,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_gpu import (
  bytes_of_chunks,
  packed,
)
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  SHARED_BYTES,
  gpu_of,
  refused_device,
  refused_sizes,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import CHUNK, MosaicGpuConfig

_MOST_VALUES = 512
"""Channels of a value at most: those of a step are rows of one product."""


def _refusal(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  latent: Array,
  latent_pages: Array,
  *_: Any,
  value_width: int,
  **__: Any,
) -> str | None:
  """Why the kernel does not take these chunks, or None."""
  taken = bytes_of_chunks(q.shape[3], config.stages, pools=1)
  return _refusal_of_latents(
    device, config, (q, latent, latent_pages), value_width
  ) or refused_sizes(config.stages, taken)


def _refusal_of_step(
  device: Device,
  config: MosaicGpuConfig,
  q: Array,
  latent: Array,
  latent_pages: Array,
  *_: Any,
  value_width: int,
  **__: Any,
) -> str | None:
  """Why the kernels do not take these tokens of rows, or None."""
  groups = q.shape[1] // latent.shape[1]
  heads = heads_of_program(groups, value_width)
  if groups % heads:
    return f"takes a multiple of {heads} query heads per latent, not {groups}"
  taken = bytes_of_rows(q.shape[2], heads, config.stages, pools=1)
  return _refusal_of_latents(
    device, config, (q, latent, latent_pages), value_width
  ) or refused_sizes(config.stages, taken)


def _refusal_of_latents(
  device: Device,
  config: MosaicGpuConfig,
  arrays: tuple[Array, Array, Array],
  value_width: int,
) -> str | None:
  """Why no kernel takes such latents, or None.

  Args:
    device: What the program is made for.
    config: The static sizes of the kernels.
    arrays: Queries, latents, and their pool.
    value_width: Channels of a latent that are its value.
  """
  if {x.dtype for x in arrays} != {jnp.dtype(jnp.bfloat16)}:
    return "takes bfloat16 only, the operands of its products"
  tokens, _, width = arrays[2].shape[1:]
  if tokens != CHUNK:
    return f"takes pages of {CHUNK} tokens, and these have {tokens}"
  if width % CHUNK:
    return f"takes latents of a multiple of {CHUNK} channels, not {width}"
  if value_width > _MOST_VALUES or value_width % (
    CHUNK * parts_of(value_width)
  ):
    return (
      f"takes values of a multiple of {CHUNK} channels up to 256, or of "
      f"{2 * CHUNK} up to {_MOST_VALUES}, not {value_width}"
    )
  refused = refused_device(device, config, products=True)
  if refused is None and not gpu_of(device).warpgroup_products:
    return f"needs products of warpgroups, and a {device.kind} has none"
  return refused


def _heuristic(device: Device, q: Array, *_: Any, **__: Any) -> MosaicGpuConfig:
  """Two stages where there is room: chunks hold their queries beside them."""
  fits = bytes_of_chunks(q.shape[-1], 2, pools=1) <= SHARED_BYTES
  return MosaicGpuConfig(stages=2 if fits else 1)


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=over_pools(packed, 1, name="latent_attention"),
  refusal=within_grid(_refusal),
  heuristic=_heuristic,
)
STEP_IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=over_pools(attend_rows, 1, name="latent_attention"),
  refusal=within_grid(_refusal_of_step),
  heuristic=_heuristic,
)
