"""Bytes of what a model keeps: per state checkpoint and per page."""

import math
from typing import Any

import jax

from sparse_prefix_jax.layers import BranchPools
from sparse_prefix_jax.models.config import ModelConfig, check_config_kind


def kept_shapes(config: ModelConfig) -> tuple[BranchPools, ...]:
  """Lists what each branch keeps: the shapes of one slot and of one page.

  Args:
    config: The model's configuration.

  Returns:
    One entry per branch, with `jax.ShapeDtypeStruct` leaves.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> [len(jax.tree.leaves(kept)) for kept in kept_shapes(preset("tiny"))]
    [2, 0, 2, 0]
  """
  return tuple(
    branch.sub.keeps(config.width, config.numerics)
    for branch in config.branches
  )


def state_bytes(config: ModelConfig) -> int:
  """Counts the bytes of one state checkpoint: the carries of all branches.

  Raises:
    ValueError: If `config` is no `ModelConfig`.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> state_bytes(preset("qwen3_5_0_8b_group"))
    3366912
  """
  check_config_kind(config)
  return _bytes([kept.slots for kept in kept_shapes(config)])


def page_bytes(config: ModelConfig) -> int:
  """Counts the bytes of one page: what all branches keep of a chunk.

  Raises:
    ValueError: If `config` is no `ModelConfig`.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> page_bytes(preset("qwen3_5_0_8b_group"))
    262144
  """
  check_config_kind(config)
  return _bytes([kept.pages for kept in kept_shapes(config)])


def check_kept_bytes(config: ModelConfig) -> None:
  """Refuses a model of which nothing can be stored.

  Args:
    config: The model's configuration.

  Raises:
    ValueError: If no branch keeps states or pages.
  """
  if not state_bytes(config) and not page_bytes(config):
    raise ValueError(
      "model: its branches keep neither states nor pages, so nothing of it can "
      "be cached."
    )


def _bytes(shapes: Any) -> int:
  """The bytes of arrays of these shapes."""
  leaves = jax.tree.leaves(shapes)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
