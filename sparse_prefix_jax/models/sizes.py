"""Bytes of what a model keeps: per state checkpoint and per page."""

import math

import jax.numpy as jnp

from sparse_prefix_jax.models.config import (
  ATTENTION,
  GATED_DELTA_NET,
  ModelConfig,
)


def state_bytes(config: ModelConfig) -> int:
  """Counts the bytes of one state checkpoint: all recurrent layers' carries.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> state_bytes(preset("qwen3_5_0_8b_group"))
    3366912
  """
  net = config.gated_delta_net
  recurrent = math.prod((net.value_heads, net.key_width, net.value_width)) * 4
  item = jnp.dtype(config.dtype).itemsize
  window = (net.window - 1) * net.mixed_width * item
  return config.layer_types.count(GATED_DELTA_NET) * (recurrent + window)


def page_bytes(config: ModelConfig) -> int:
  """Counts the bytes of one page: a chunk's keys and values in all layers.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> page_bytes(preset("qwen3_5_0_8b_group"))
    262144
  """
  item = jnp.dtype(config.dtype).itemsize
  heads = config.kv_heads * config.head_width
  per_layer = 2 * config.chunk * heads * item
  return config.layer_types.count(ATTENTION) * per_layer
