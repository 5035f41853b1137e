"""What outlives a request: the prefix cache, its index and its pools."""

from sparse_prefix_jax.cache.counts import StoreStats as StoreStats
from sparse_prefix_jax.cache.exposition import (
  prometheus_text as prometheus_text,
)
from sparse_prefix_jax.cache.index import CapacityError as CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache as PrefixCache
from sparse_prefix_jax.cache.running import SequenceHandle as SequenceHandle
