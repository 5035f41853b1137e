"""gated_delta_rule_projected_step on GPU: heads are made where they are used.

A program of `mosaic_gpu/step.py` takes its query, key and values from what the
convolution left, and its two gates from the token itself: unit length, softplus
and sigmoid are few operations, two products of a row with a row not many, and
kernels of their own take longer to launch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.gated_delta_rule.projected_xla import (
  gate_product,
)
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu.devices import within_grid
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig, Ref
from sparse_prefix_jax.kernels.mosaic_gpu.step import (
  StepProgram,
  TokenHeads,
  advance,
  step_implementation,
)

_STEP = step_implementation("gated_delta_rule_step")
_EPS = 1e-6
_ALIGNED = 16  # the fewest columns of a program
_LANES = 32
_LOAD_BYTES = 16
_PIECE = 1024
"""Numbers of a token that a warp takes at a time."""
_MOST = 2048
"""Numbers of a token that every program reads for its gates. Those of wider
models would be as many as its part of the state: they have a product."""


class _Operands(NamedTuple):
  """What a program reads, but for the states.

  Attributes:
    mixed: Queries, keys and values side by side. [b d]
    gates: Projections to decays and strengths [b 2*hv], or None.
    x: What they are projected from where they are not there. [b i]
    weight: Of that projection. [2*hv i]
    log_rate: What decays are multiplied by. [hv]
    decay_bias: What is added before the softplus. [hv]
    read: Slots, or ZERO. [b]
    write: Slots, or NONE. [b]
  """

  mixed: Ref
  gates: Ref
  x: Ref
  weight: Ref
  log_rate: Ref
  decay_bias: Ref
  read: Ref
  write: Ref


def _run(
  mixed: Float32[Array, "b d"],
  x: Float[Array, "b i"],
  weight: Float[Array, "gates i"],
  log_rate: Float32[Array, "hv"],
  decay_bias: Float32[Array, "hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  key_heads: int,
  beta_scale: float,
  dtype: str,
  precision: str,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  class Projected(StepProgram):
    """A program that makes its heads."""

    def load_heads(self, row: Array, head: Array) -> TokenHeads:
      return _loaded(self, row, head, key_heads)

    def heads(self, loaded: TokenHeads) -> TokenHeads:
      return _heads(loaded, dtype)

    def gates(self, row: Array, head: Array) -> tuple[Array, Array]:
      return _gates(self, row, head, beta_scale)

  if _within(x):
    gates = None, x, weight
  else:
    gates = gate_product(x, weight, precision), None, None
  of = _Operands(mixed, *gates, log_rate, decay_bias, read, write)
  rows = mixed.shape[0]
  return advance(Projected, of, rows, pool, config, "gated_delta_rule_step")


def _within(x: Float[Array, "b i"]) -> bool:
  """Whether a program makes its gates itself, which the shapes decide."""
  width = x.shape[1]
  whole = width % min(width, _PIECE) == 0
  loads = width % (_LANES * _apiece(x.dtype)) == 0
  return whole and loads and width <= _MOST


def _apiece(dtype: DTypeLike) -> int:
  """Numbers that one load of a thread brings."""
  return _LOAD_BYTES // jnp.dtype(dtype).itemsize


def _loaded(
  program: StepProgram, row: Array, head: Array, key_heads: int
) -> TokenHeads:
  """Loads the channels of one head and its key head."""
  _, heads, width, value_width = program.pool.shape
  key_head = head // (heads // key_heads)
  tile = lax.axis_index("tile") * program.config.columns
  first = 2 * key_heads * width + head * value_width + tile

  def load(start: Any, count: int) -> Array:
    place = pl.ds(pl.multiple_of(start, _ALIGNED), count)
    return program.load(program.of.mixed.at[row, place])

  return TokenHeads(
    load(key_head * width, width),
    load((key_heads + key_head) * width, width),
    load(first, program.config.columns),
  )


def _heads(loaded: TokenHeads, dtype: str) -> TokenHeads:
  """Makes heads as `project_heads` does."""
  q, k, v = loaded
  q, k = (x * lax.rsqrt(jnp.sum(x * x) + _EPS) for x in (q, k))
  q = q * q.shape[0] ** -0.5
  return TokenHeads(*(x.astype(dtype).astype(jnp.float32) for x in (q, k, v)))


def _gates(
  program: StepProgram, row: Array, head: Array, beta_scale: float
) -> tuple[Array, Array]:
  """Makes exp(a) and beta of a head."""
  of, heads = program.of, program.pool.shape[1]
  places = head, heads + head
  if of.gates is None:
    decay, beta = _projected_gates(program, row, places)
  else:
    decay, beta = (of.gates[row, place] for place in places)
  rate = jnp.exp(of.log_rate[head])
  decay = jnp.exp(-rate * _softplus(decay + of.decay_bias[head]))
  return decay, jax.nn.sigmoid(beta) * beta_scale


def _projected_gates(
  program: StepProgram, row: Array, places: tuple[Array, Array]
) -> tuple[Array, Array]:
  """Multiplies a token by two rows of the weight, each warp all of it."""
  of: _Operands = program.of
  width = of.x.shape[1]
  piece = min(width, _PIECE)

  def placed(vector: Array) -> Array:
    if program.config.interpret is not None:
      return vector
    return plgpu.layout_cast(vector, _shared_by_warps(_apiece(of.x.dtype)))

  def load(source: Ref, start: Array) -> Array:
    place = pl.ds(pl.multiple_of(start, piece), piece)
    return placed(program.load(source.at[place])).astype(jnp.float32)

  def add(index: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
    start = index * piece
    x = load(of.x.at[row], start)
    first, second = (load(of.weight.at[place], start) for place in places)
    return sums[0] + x * first, sums[1] + x * second

  zeros = placed(jnp.zeros(piece, jnp.float32))
  sums = zeros, zeros
  if width == piece:
    sums = add(jnp.int32(0), sums)
  else:
    sums = lax.fori_loop(0, width // piece, add, sums)
  return jnp.sum(sums[0]), jnp.sum(sums[1])


def _shared_by_warps(apiece: int) -> Any:
  """Registers of a vector that every warp has all of.

  Args:
    apiece: Neighbours that a thread has.
  """
  return plgpu.Layout.TILED(
    plgpu.Tiling(((_LANES * apiece,), (apiece,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-2,),
    vector_dim=-1,
  )


def _softplus(x: Array) -> Array:
  """log(1 + exp(x)) of a number, to its last digits where it is small."""
  small = jnp.exp(-jnp.abs(x))
  above = 1.0 + small
  exact = above == 1.0
  below = jnp.where(exact, 1.0, above - 1.0)
  return jnp.maximum(x, 0.0) + jnp.where(
    exact, small, jnp.log(above) * (small / below)
  )


def _refusal(
  device: Device,
  config: MosaicGpuConfig,
  mixed: Array,
  x: Array,
  weight: Array,
  log_rate: Array,
  decay_bias: Array,
  pool: Array,
  *_: Any,
  key_heads: int,
  **__: Any,
) -> str | None:
  del x, weight, log_rate, decay_bias
  q, v, gate = _shapes(mixed, pool, key_heads)
  return _STEP.refusal(device, config, q, q, v, gate)


def _heuristic(
  device: Device,
  mixed: Array,
  x: Array,
  weight: Array,
  log_rate: Array,
  decay_bias: Array,
  pool: Array,
  *_: Any,
  key_heads: int,
  **__: Any,
) -> MosaicGpuConfig:
  del x, weight, log_rate, decay_bias
  q, v, _gate = _shapes(mixed, pool, key_heads)
  config: Any = _STEP.heuristic(device, q, q, v)
  return config


def _shapes(
  mixed: Array, pool: Array, key_heads: int
) -> tuple[Array, Array, Array]:
  """Queries, values and a gate as the step takes them, to be looked at."""
  b, (_, heads, width, value_width) = mixed.shape[0], pool.shape
  return (
    jnp.zeros((b, key_heads, width), mixed.dtype),
    jnp.zeros((b, heads, value_width), mixed.dtype),
    jnp.zeros((b, heads), jnp.float32),
  )


PROJECTED_STEP = Implementation(
  MosaicGpuConfig, _run, within_grid(_refusal), _heuristic
)
