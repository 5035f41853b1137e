"""gated_delta_rule_projected_step on TPU: heads made by XLA, then the kernel.

A few fused operations make the heads of a token from its projections; they are
small beside a state, which is read and written once, by the kernel of
`gated_delta_rule_step`.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from sparse_prefix_jax.kernels.gated_delta_rule import (
  mosaic_tpu,
  projected_xla,
)
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_tpu.step import StepConfig


def _run(
  *arguments: Array, config: StepConfig, **options: Any
) -> tuple[Array, Array]:
  """Makes the heads and takes the token, as the operation is called."""
  step = functools.partial(mosaic_tpu.STEP.run, config=config)
  return projected_xla.projected_step(*arguments, step=step, **options)


def _refusal(
  device: Device, config: StepConfig, *arguments: Array, **options: Any
) -> str | None:
  return mosaic_tpu.STEP.refusal(device, config, *_heads(arguments, **options))


def _heuristic(device: Device, *arguments: Array, **options: Any) -> StepConfig:
  config: Any = mosaic_tpu.STEP.heuristic(device, *_heads(arguments, **options))
  return config


def _heads(
  arguments: tuple[Array, ...], *, key_heads: int, dtype: str, **_: Any
) -> tuple[Array, ...]:
  """What the step would be called with, to be looked at."""
  mixed, *_rest, pool, read, write = arguments
  b, (_slots, heads, width, value_width) = mixed.shape[0], pool.shape
  key = jnp.zeros((b, key_heads, width), dtype)
  gate = jnp.zeros((b, heads), jnp.float32)
  value = jnp.zeros((b, heads, value_width), dtype)
  return key, key, value, gate, gate, pool, read, write


PROJECTED_STEP = Implementation(StepConfig, _run, _refusal, _heuristic)
