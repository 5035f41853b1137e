"""diagonal_scan_step on TPU: one number of a state per channel, or e of them.

The form of `mosaic_tpu/step.py`. RG-LRU's takes eight rows at a time, which are
the rows of a register: each comes from its slot, all are advanced by the same
operations, each leaves to its slot. Mamba's takes a row at a time, whose
channels lie along the lanes and its e numbers along the sublanes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu import algebra as algebra
from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.kernels.mosaic_tpu.scan import Operand, Ref
from sparse_prefix_jax.kernels.mosaic_tpu.step import (
  StepConfig,
  StepGrid,
  advance,
)

_TOGETHER = 8
"""Rows that a step of RG-LRU's form advances."""
_MOST_BYTES = 2**20
"""States of a step: three of these, and what advances them, fit VMEM."""


def _run(
  x: Float[Array, "b d"],
  log_decay: Float32[Array, "b d"],
  pool: Float32[Array, "s d *e"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  rate: Float32[Array, "d e"] | None,
  b: Float[Array, "b e"] | None,
  c: Float[Array, "b e"] | None,
  *,
  config: StepConfig,
) -> tuple[Float32[Array, "b d"], Float32[Array, "s d *e"]]:
  """Takes one token of b rows in one launch; as `diagonal_scan_step`."""
  x = x.astype(jnp.float32)
  parts = x.shape[1] // config.block // config.cores
  if rate is not None and b is not None and c is not None:
    grid = StepGrid(config.cores, x.shape[0], parts, 1)
    tokens = [Operand(u[:, None], 2) for u in (x, log_decay)]
    numbers = (u.astype(jnp.float32)[:, :, None] for u in (b, c))
    columns = [Operand(u, None) for u in numbers]
    y, pool = advance(
      _selective_cell,
      [*tokens, *columns, Operand(rate.T, 1, chunked=False)],
      _new(tokens[0]),
      # XLA keeps such states with the channels along the lanes already.
      Operand(pool.swapaxes(1, 2), 2),
      (read, write),
      grid,
      config,
      "diagonal_scan_step",
    )
    return y[:, 0], pool.swapaxes(1, 2)
  rows = x.shape[0]
  missing = -rows % _TOGETHER
  tokens = [
    Operand(jnp.pad(u, ((0, missing), (0, 0))), 1) for u in (x, log_decay)
  ]
  read = jnp.pad(read, (0, missing), constant_values=ZERO)
  write = jnp.pad(write, (0, missing), constant_values=NONE)
  grid = StepGrid(config.cores, (rows + missing) // _TOGETHER, parts, _TOGETHER)
  y, pool = advance(
    _cell,
    tokens,
    _new(tokens[0]),
    Operand(pool, 1),
    (read, write),
    grid,
    config,
    "diagonal_scan_step",
  )
  return y[:rows], pool


def _new(like: Operand) -> Operand:
  """The outputs, cut as an input is."""
  shape = jax.ShapeDtypeStruct(like.array.shape, jnp.float32)
  return like._replace(array=shape)


def _cell(states: Ref, xs: Sequence[Ref], y: Ref) -> None:
  """Takes one token of a few rows: h = exp(a) h + x, and y = h.

  Args:
    states: The states [rows d], updated.
    xs: x and log_decay, [rows d].
    y: Outputs, [rows d].
  """
  x, log_decay = (ref[...] for ref in xs)
  state = algebra.decayed(jnp.exp(log_decay), states[...]) + x
  states[...] = state
  y[...] = state


def _selective_cell(states: Ref, xs: Sequence[Ref], y: Ref) -> None:
  """Takes one token of a row: h = exp(a rate) h + b x, and y = sum of c h.

  Args:
    states: The state [1 e d], updated.
    xs: x and log_decay [1 1 d], b and c [1 e 1], rate [e d].
    y: Outputs, [1 1 d].
  """
  x, log_decay, b, c = (ref[0] for ref in xs[:4])
  decay = jnp.exp(xs[4][...] * algebra.settle_resets(log_decay))
  state = algebra.decayed(decay, states[0]) + b * x
  states[0] = state
  y[0] = jnp.sum(state * c, axis=0, keepdims=True)


def _refusal(
  device: Device,
  config: StepConfig,
  x: Array,
  log_decay: Array,
  pool: Array,
  *rest: Any,
) -> str | None:
  """Why the call does not fit a TPU, or None."""
  del device
  width, (block, cores) = x.shape[1], (config.block, config.cores)
  if width % fit.LANES:
    return f"{width} channels are not a multiple of {fit.LANES}"
  if block < 1 or block % fit.LANES or width % block:
    return f"block {block} is not a multiple of {fit.LANES} dividing {width}"
  if cores < 1 or width // block % cores:
    return f"{cores} cores do not divide {width // block} blocks of channels"
  # More of them fill the lanes: XLA lays those out the other way round.
  if rest[2] is not None and pool.shape[2] not in range(8, 65, 8):
    return f"{pool.shape[2]} states per channel are not 8, 16, ... or 64"
  taken = block * _channel_bytes(pool)
  if taken > _MOST_BYTES:
    return f"states of a step take {taken} bytes, above {_MOST_BYTES}"
  if log_decay.dtype != jnp.float32:
    return f"decays are {log_decay.dtype} and must be float32"
  reason = fit.refusal_of_types((x,), lax.Precision.HIGHEST)
  return reason or fit.refusal_of_state(pool)


def _channel_bytes(pool: Float[Array, "s d *e"]) -> int:
  """Bytes of the states of a channel that a step has in VMEM."""
  return 4 * (_TOGETHER if pool.ndim == 2 else pool.shape[2])


def _heuristic(
  device: Device, x: Array, log_decay: Array, pool: Array, *_: Any
) -> StepConfig:
  """Chooses the channels of a step: all of a core, if they fit."""
  del log_decay
  width = x.shape[1]
  cores = fit.cores_of(device, width // fit.LANES)
  fitting = (
    block
    for block in range(width // cores, 0, -fit.LANES)
    if block % fit.LANES == 0
    and width // cores % block == 0
    and block * _channel_bytes(pool) <= _MOST_BYTES
  )
  return StepConfig(block=next(fitting, fit.LANES), cores=cores)


STEP = Implementation(StepConfig, _run, _refusal, _heuristic)
