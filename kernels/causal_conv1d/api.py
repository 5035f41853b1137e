"""causal_conv1d: a depthwise convolution whose window outlives a chunk."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import differentiable
from sparse_prefix_jax.kernels.causal_conv1d import (
  mosaic_gpu,
  mosaic_gpu_step,
  mosaic_tpu,
  xla,
)
from sparse_prefix_jax.kernels.checks import check_pool, check_shapes
from sparse_prefix_jax.kernels.chunks import Captures, Chunks
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.slot_checks import (
  check_core,
  check_rows,
  check_slots,
)

IMPLEMENTATIONS = (
  mosaic_gpu.IMPLEMENTATION,
  mosaic_tpu.IMPLEMENTATION,
  plain(xla.packed),
)
STEP_IMPLEMENTATIONS = (mosaic_gpu_step.STEP, plain(xla.step))


def causal_conv1d(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
  *,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """y_t = sum_i weight_i x_{t-w+1+i}, the past before a chunk from its slot.

  Args:
    x: Inputs of n packed chunks.
    weight: Depthwise filter, oldest tap first.
    pool: The last w-1 inputs per slot, in the dtype of x; donated.
    chunks: What each packed chunk reads, writes and holds.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    y in float32 and the pool. Rows past a chunk's length are unspecified.

  Raises:
    ValueError: If shapes do not belong together, or if no implementation fits,
      with the reason of each.

  Example:
    >>> import jax.numpy as jnp
    >>> chunks = Chunks(*jnp.array([[-1], [0], [3], [0], [0]]))  # from ZERO
    >>> x, weight = jnp.ones((1, 4, 1)), jnp.ones((2, 1))
    >>> y, pool = causal_conv1d(x, weight, jnp.zeros((1, 1, 1)), chunks)
    >>> y[0, :3, 0].tolist(), pool.item()
    ([1.0, 2.0, 2.0], 1.0)
  """
  sizes = check_shapes(
    "causal_conv1d",
    chunks,
    x=(x, "n c d"),
    weight=(weight, "w d"),
    pool=(pool, "s window d"),
  )
  _check_window("causal_conv1d", x, pool, sizes)
  check_slots("causal_conv1d", chunks, sizes)
  return dispatch(
    "causal_conv1d",
    implementation,
    IMPLEMENTATIONS,
    x,
    weight,
    pool,
    chunks,
  )


def causal_conv1d_core(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  length: Int32[Array, "n"],
  *,
  initial_state: Float[Array, "w-1 d"],
  capture_at: Captures = (),
  implementation: Choice = None,
) -> differentiable.Scanned:
  """The operation for one request, without a pool: what training uses.

  Differentiable in inputs, weight, initial and captured states. Its bits are
  those of `causal_conv1d`.

  Args:
    x: As in `causal_conv1d`.
    weight: As in `causal_conv1d`.
    length: Real tokens of each chunk.
    initial_state: The last w-1 inputs before the first chunk.
    capture_at: Numbers of chunks after which to hand out the state.
    implementation: What computes the forward pass: a name, a config or None.

  Returns:
    y [n c d] in float32, the last state, the captured states [m w-1 d].

  Raises:
    ValueError: As `causal_conv1d`; or if `capture_at` is not made of distinct
      numbers from 1 to n.
  """
  check_core(
    "causal_conv1d_core",
    length,
    (initial_state, "window d"),
    getattr(x, "dtype", jnp.float32),  # What is no array is refused first.
    x=(x, "n c d"),
    weight=(weight, "w d"),
  )
  if initial_state.shape[0] != weight.shape[0] - 1:
    raise ValueError(
      f"initial_state of causal_conv1d_core has {initial_state.shape[0]} "
      f"inputs; before {weight.shape[0]} taps there are {weight.shape[0] - 1}."
    )

  def packed(
    weight: Array, x: Array, pool: Array, chunks: Chunks
  ) -> tuple[Array, Array]:
    return causal_conv1d(x, weight, pool, chunks, implementation=implementation)

  return differentiable.scan(
    differentiable.Core(packed, xla.chunk),
    x,
    initial_state,
    length,
    capture_at,
    constants=weight,
  )


def causal_conv1d_step(
  x: Float[Array, "b d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  silu: bool = False,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b d"], Float[Array, "s w-1 d"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`.

  Args:
    x: Inputs.
    weight: Depthwise filter, oldest tap first.
    pool: The last w-1 inputs per slot, in the dtype of x; donated.
    read: Slot of the inputs before the token, or ZERO.
    write: Slot that receives the inputs after it, or NONE; no slot twice, and
      none that another row reads.
    silu: Whether y goes through silu.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    y in float32 and the pool.

  Raises:
    ValueError: Shapes do not belong together, a slot is none, or no
      implementation fits, with the reason of each.
  """
  sizes = check_rows(
    "causal_conv1d_step",
    read,
    write,
    x=(x, "b d"),
    weight=(weight, "w d"),
    pool=(pool, "s window d"),
  )
  _check_window("causal_conv1d_step", x, pool, sizes)
  if not isinstance(silu, bool):
    raise ValueError(
      f"silu of causal_conv1d_step is {silu!r}; it must be True or False."
    )
  return dispatch(
    "causal_conv1d_step",
    implementation,
    STEP_IMPLEMENTATIONS,
    x,
    weight,
    pool,
    read,
    write,
    silu=silu,
  )


def _check_window(
  operation: str, x: Array, pool: Array, sizes: Mapping[str, int]
) -> None:
  """Refuses a pool that does not hold the last w - 1 inputs, as they are."""
  check_pool(operation, pool, x.dtype)
  slot = sizes["w"] - 1, sizes["d"]
  if pool.shape[1:] != slot:
    raise ValueError(
      f"the pool of {operation} has shape {pool.shape}; its slots must be "
      f"{slot}."
    )
