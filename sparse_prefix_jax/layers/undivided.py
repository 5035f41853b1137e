"""Weights are whole on every device that holds them, or refused."""

from collections.abc import Iterable
from typing import Any

import jax
from jax import core


def check_undivided(leaves: Iterable[Any]) -> None:
  """Refuses weights of which devices hold parts.

  What XLA makes of a product in parts depends on the rows of its program, and
  so would the bits of a state. Traced weights are not known yet and pass; so do
  those of NumPy, and those that every device holds whole.

  Args:
    leaves: The parameters of a model or of a layer.

  Raises:
    ValueError: Naming the first that is divided.

  Example:
    >>> check_undivided([jax.numpy.ones((2, 3))])
  """
  for leaf in leaves:
    if isinstance(leaf, core.Tracer) or not isinstance(leaf, jax.Array):
      continue
    if not leaf.sharding.is_fully_replicated:
      raise ValueError(
        f"model: a weight of shape {list(leaf.shape)} is divided over "
        f"{len(leaf.sharding.device_set)} devices; products in parts lose the "
        "bits that stored states have, so weights must be whole, on one device "
        "or replicated."
      )
