"""Small models that several tests share, each made and compiled once."""

import functools

from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig, preset
from sparse_prefix_jax.contract import ColdRuns
from sparse_prefix_jax.placement import PlacementPolicy

LONGEST = 160
"""Longest sequence of most tests, in tokens."""


def small_config(**changes) -> ModelConfig:
  """Chunks of 16 tokens: many lattice points in short prompts."""
  fields = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 32}
  return preset("tiny", **(fields | changes))


@functools.cache
def small_model(**changes) -> HybridDecoder:
  """A random model of `small_config`."""
  return HybridDecoder(small_config(**changes), rngs=nnx.Rngs(0))


@functools.cache
def cold_runs(**changes) -> ColdRuns:
  """Cold runs of `small_model`, to compare with."""
  return ColdRuns(small_model(**changes), longest=LONGEST)


def last_placement() -> PlacementPolicy:
  """A state at the end of every entry."""
  return PlacementPolicy("last", chunk=16)
