"""Whether a model is the one that a cache was made for."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sparse_prefix_jax.models.config import ModelConfig, differences
from sparse_prefix_jax.models.decoder import HybridDecoder


def checked_model(model: HybridDecoder) -> tuple[Any, ...]:
  """The parameters of a model as they were given.

  Raises:
    ValueError: If it is not exactly a HybridDecoder.
  """
  if type(model) is not HybridDecoder:
    why = (
      "itself, since the compiled programs would ignore what a subclass "
      "changes."
      if isinstance(model, HybridDecoder)
      else "(load_pretrained returns one, and its configuration)."
    )
    raise ValueError(
      f"model is a {type(model).__name__}; a cache serves a HybridDecoder {why}"
    )
  return tuple(jax.tree.leaves(model))


def check_config(given: ModelConfig, known: ModelConfig) -> None:
  """Refuses another configuration, naming the choices that differ."""
  if given == known:
    return
  changed = [
    f"{path} = {new!r} instead of {old!r}"
    for path, new, old in differences(given, known)
  ]
  raise ValueError(
    f"model has another configuration than the cache: {', '.join(changed)}."
  )


def is_deleted(leaf: Any) -> bool:
  """Whether an array is gone; one of NumPy never is."""
  return isinstance(leaf, jax.Array) and leaf.is_deleted()


def fingerprint(leaves: Sequence[Any]) -> bytes:
  """Hash of all weights, their shapes and dtypes."""
  digest = hashlib.blake2b(digest_size=16)
  for leaf in leaves:
    digest.update(f"{leaf.shape}{leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.digest()
