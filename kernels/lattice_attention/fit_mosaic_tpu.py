"""What of lattice attention fits a TPU: its types, its memory, its table."""

from collections.abc import Sequence

from jax import lax
from jaxtyping import Array

from sparse_prefix_jax.kernels.implementations import Device
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit


def refusal_of_pages(
  device: Device,
  limit: int,
  arrays: Sequence[Array],
  scalars: Sequence[Array],
  taken: int,
  precision: lax.Precision,
) -> str | None:
  """Why queries, pages or their table do not fit a TPU, or None.

  Args:
    device: What the program is made for.
    limit: `vmem_limit_bytes` of the call.
    arrays: q, what is written, and the pools of it, in this order.
    scalars: What the kernel is given ahead; the page table last.
    taken: Bytes of VMEM.
    precision: Precision of the products.
  """
  (q, k), size = arrays[:2], arrays[-1].shape[1]
  width = k.shape[-1]
  if len({x.dtype for x in arrays}) > 1:
    return "queries, keys, values and pages differ in dtype"
  if size % 16:
    return f"chunks of {size} tokens are not a multiple of 16"
  if width % 64:
    return f"heads of width {width} are not a multiple of 64"
  there = fit.vmem_bytes(device)
  if limit > there:
    return (
      f"vmem_limit_bytes is {limit}, and a {device.kind} has "
      f"{there} bytes of VMEM"
    )
  smem = fit.scalar_bytes(*scalars)
  if smem > fit.SCALAR_BYTES:
    requests, pages = scalars[-1].shape
    return (
      f"a page table of {requests} requests and {pages} pages takes {smem} "
      f"bytes of SMEM, and there are {fit.SCALAR_BYTES}"
    )
  if taken > limit * 3 // 4:
    return (
      f"{q.shape[-2]} heads over {k.shape[-2]} of width {width} take "
      f"{taken >> 20} MiB of VMEM, above 3/4 of vmem_limit_bytes"
    )
  return fit.refusal_of_types((q,), precision)


def bytes_of_rows(
  rows: int, k: Array, keys: int, value_width: int | None = None
) -> int:
  """The bytes of a step with so many rows per key head, and keys of a block.

  The compiler adds up to a third for what it spills. Two blocks of keys and two
  of values, or two of latents; queries and outputs twice (one pair is on its
  way), maximum and total along the lanes, and a block of scores, masked and as
  weights.

  Args:
    rows: Queries that share a key head.
    k: Keys of tokens, or latents. [... hkv k]
    keys: Keys of a block.
    value_width: Channels of a latent that are its value; None where keys and
      values are apart.
  """
  heads, width = k.shape[-2], fit.whole_lanes(k.shape[-1])
  pools = 2 if value_width is None else 1
  blocks = 2 * pools * keys * heads * width * k.dtype.itemsize
  wide = width if value_width is None else fit.whole_lanes(value_width)
  ends = 2 * rows * heads * (width * k.dtype.itemsize + wide * 4)
  scores = 3 * rows * keys * 4
  taken = blocks + ends + 2 * rows * heads * fit.LANES * 4 + scores
  if value_width is None or k.dtype.itemsize < 4:
    return taken
  # Measured: 64 heads of latents in float32 have no room in 96 MiB on a v5e.
  # So wide, the parts in bfloat16 of what is multiplied count as well.
  return taken + 6 * rows * (width + keys)
