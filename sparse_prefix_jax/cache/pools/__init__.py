"""Device arrays: state slots and key/value pages; their sizes, copies."""

from sparse_prefix_jax.cache.pools.pools import copy_sequence as copy_sequence
from sparse_prefix_jax.cache.pools.pools import split_capacity as split_capacity
