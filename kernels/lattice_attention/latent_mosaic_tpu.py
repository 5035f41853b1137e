"""Attention to latents on TPU: the kernel of lattice attention with one pool.

Values are the first channels of the keys of a block, so that each latent is
fetched once. All heads share it: the queries of a chunk are the rows of one
product, many more than of a key head elsewhere, which takes more memory.
"""

from typing import Any

from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.lattice_attention.chunks_mosaic_tpu import (
  attend_chunks,
  refusal_of_chunks,
)
from sparse_prefix_jax.kernels.lattice_attention.decode_mosaic_tpu import (
  attend_rows,
  refusal_of_rows,
)
from sparse_prefix_jax.kernels.lattice_attention.mosaic_tpu import Config
from sparse_prefix_jax.kernels.lattice_attention.over_pools import over_pools
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit

_VMEM_BYTES = 96 * 2**20


def _refusal(*arguments: Any, value_width: int, **options: Any) -> str | None:
  """Why chunks do not fit a TPU, or None."""
  return _refusal_of_values(value_width) or refusal_of_chunks(
    *arguments, value_width=value_width, **options
  )


def _refusal_of_step(
  *arguments: Any, value_width: int, **options: Any
) -> str | None:
  """Why tokens of rows do not fit a TPU, or None."""
  return _refusal_of_values(value_width) or refusal_of_rows(
    *arguments, value_width=value_width, **options
  )


def _refusal_of_values(width: int) -> str | None:
  """Why values cannot be cut from latents, or None."""
  if width % fit.LANES:
    return f"values of {width} channels are not a multiple of {fit.LANES}"
  return None


def _heuristic(device: Device, *arguments: Any, **options: Any) -> Config:
  """What a device has, up to what 32 heads of a chunk take."""
  return Config(vmem_limit_bytes=min(_VMEM_BYTES, fit.vmem_bytes(device)))


IMPLEMENTATION = Implementation(
  Config,
  over_pools(attend_chunks, 1, name="latent_attention"),
  _refusal,
  _heuristic,
)
STEP_IMPLEMENTATION = Implementation(
  Config,
  over_pools(attend_rows, 1, name="latent_attention_step"),
  _refusal_of_step,
  _heuristic,
)
