"""What every call on a cache refuses."""

from sparse_prefix_jax.cache.prefix_cache import PrefixCache


def check_cache(cache: object) -> None:
  """Refuses what is no cache, such as a model in its place.

  Args:
    cache: What was given.

  Raises:
    ValueError: If it is anything but a PrefixCache.
  """
  if not isinstance(cache, PrefixCache):
    raise ValueError(
      f"cache is a {type(cache).__name__}; it must be a PrefixCache, after the "
      "model."
    )
