"""Whether a model is the one that a cache was made for."""

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_prefix_jax.models.config import ModelConfig, differences
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime.programs import FrozenModel, freeze
from sparse_prefix_jax.runtime.weight_checks import check_model_weights


class OtherWeightsError(ValueError):
  """A model has not the weights that its cache serves, or none any more."""


class HeldModel(NamedTuple):
  """A model whose states a cache keeps.

  Attributes:
    model: The last that was given.
    frozen: Its parameters as they were then, as programs take them.
    before: Those of the model before it with the same weights, which may go.
  """

  model: HybridDecoder
  frozen: FrozenModel
  before: tuple[weakref.ref[Any], ...] = ()


def held_model(model: HybridDecoder) -> HeldModel:
  """A model to serve from here on.

  Raises:
    ValueError: If it is not exactly a HybridDecoder, or its weights are gone,
      divided over devices, or not those of its configuration.
  """
  _check_kind(model)
  check_model_weights(model)
  return HeldModel(model, freeze(model))


def hold_equal(model: HybridDecoder, served: HeldModel) -> HeldModel:
  """A model of the same weights, instead of the one that is served.

  Parameters that are the same arrays pass at once, and so do those of the model
  before; others are hashed.

  Args:
    model: What was given.
    served: What is served.

  Returns:
    What is served from here on: what was, if its arrays were given.

  Raises:
    ValueError: If the configuration is another one.
    OtherWeightsError: If weights are others, or gone.
  """
  _check_kind(model)
  check_config(model.config, served.frozen.config)
  given, known = jax.tree.leaves(model), served.frozen.leaves
  if any(map(is_deleted, (*known, *given))):
    raise OtherWeightsError(
      "model: the weights that the cache was made for are gone (donated to "
      "a training step, for example); give the cache new ones by "
      "`replace_weights`."
    )
  if _are_same(given, known):
    return served
  check_model_weights(model)
  before = [reference() for reference in served.before]
  if not _are_same(given, before) and fingerprint(given) != fingerprint(known):
    raise OtherWeightsError(
      "model has other weights than the cache was made for, and stored "
      "states belong to the old ones; call `replace_weights`, or make a new "
      "PrefixCache."
    )
  return HeldModel(model, freeze(model), tuple(map(weakref.ref, known)))


def _are_same(given: Sequence[Any], known: Sequence[Any]) -> bool:
  """Whether they are the same arrays, one by one."""
  same = len(given) == len(known)
  return same and all(x is y for x, y in zip(given, known))


def _check_kind(model: HybridDecoder) -> None:
  """Refuses what is not exactly a HybridDecoder."""
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
