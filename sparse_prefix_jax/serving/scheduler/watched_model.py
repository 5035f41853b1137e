"""The model that a scheduler serves, looked at in every step."""

from typing import Any

import jax
from flax import nnx

from sparse_prefix_jax.cache.identity import is_deleted
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.models.decoder import HybridDecoder


class WatchedModel:
  """Whether a model still has the weights that its cache serves.

  Where the cache was given other weights on purpose, their model is watched
  from then on.

  Args:
    model: What a scheduler was given.
    cache: What it serves from.

  Raises:
    ValueError: As `PrefixCache.check_model`.
  """

  def __init__(self, model: HybridDecoder, cache: PrefixCache) -> None:
    """Checks it whole."""
    self._cache, replaced = cache, cache.replaced
    cache.check_model(model)
    self._watch(model, replaced)

  def _watch(self, model: HybridDecoder, replaced: int) -> None:
    """Looks at a model, until weights were replaced once more."""
    self._model, self._replaced = model, replaced
    self._variables: list[Any] = jax.tree.leaves(
      model, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )

  def current(self) -> HybridDecoder:
    """The model: what was given, or what the cache was given since."""
    replaced = self._cache.replaced  # Before the model: it is no older.
    if replaced != self._replaced:
      self._watch(self._cache.model, replaced)
    return self._model

  def check(self) -> None:
    """Refuses other weights, or none: for every request."""
    self._cache.check_model(self.current())

  def refusal(self) -> ValueError | None:
    """The same for every step: what variables hold, and nothing besides.

    To flatten a module takes 40 times as long; that a submodule was replaced is
    seen with the next request.

    Returns:
      Why nothing can be computed, or None.
    """
    self.current()
    leaves = self._cache.frozen.leaves
    same = all(
      variable.get_raw_value() is leaf and not is_deleted(leaf)
      for variable, leaf in zip(self._variables, leaves, strict=True)
    )
    try:
      if not same:
        self.check()
    except ValueError as error:
      return error
    return None
