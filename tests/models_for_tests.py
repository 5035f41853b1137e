"""Small models that several tests share, each made and compiled once."""

import dataclasses
import functools

import jax
from flax import nnx
from jax._src import compiler

from sparse_prefix_jax import HybridDecoder, ModelConfig
from sparse_prefix_jax.contract import ColdRuns
from sparse_prefix_jax.contract.traffic import Answers
from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.models import hybrid
from sparse_prefix_jax.placement import PlacementPolicy

LONGEST = 160
"""Longest sequence of most tests, in tokens."""


TINY = {
  "vocab_size": 512,
  "width": 64,
  "hidden": 128,
  "layer_types": ("gated_delta_net", "attention"),
  "key_heads": 2,
  "value_heads": 4,
  "key_width": 32,
  "value_width": 32,
  "heads": 4,
  "kv_heads": 2,
  "head_width": 32,
  "rotary_width": 16,
}
"""What the preset "tiny" is made of."""


def tiny_config(**changes) -> ModelConfig:
  """The preset "tiny", with choices of `hybrid` or of numerics replaced."""
  known = [field.name for field in dataclasses.fields(Numerics)]
  inner = {name: x for name, x in changes.items() if name in known}
  choices = {name: x for name, x in changes.items() if name not in known}
  numerics = Numerics(**({"ladder": (1, 2, 4), "max_length": 4096} | inner))
  ends = choices.pop("end_ids", ())
  return hybrid(**(TINY | choices), numerics=numerics).replace(end_ids=ends)


def small_config(**changes) -> ModelConfig:
  """Chunks of 16 tokens: many lattice points in short prompts."""
  fields = {"chunk": 16, "ladder": (4, 8), "max_length": 256, "head_rows": 32}
  return tiny_config(**(fields | changes))


def small_model(**changes) -> HybridDecoder:
  """A random model of `small_config`, made by what is compiled alike."""
  return _small_model(_compiling(), **changes)


@functools.cache
def _small_model(compiling: tuple, **changes) -> HybridDecoder:
  del compiling
  return HybridDecoder(small_config(**changes), rngs=nnx.Rngs(0))


def cold_runs(**changes) -> ColdRuns:
  """Cold runs of `small_model`, to compare with what is compiled alike."""
  return _cold_runs(_compiling(), **changes)


@functools.cache
def _cold_runs(compiling: tuple, **changes) -> ColdRuns:
  del compiling
  return ColdRuns(small_model(**changes), longest=LONGEST)


def _compiling() -> tuple:
  """How tests compile now: two that are alike compile alike."""
  little = jax.config.read("jax_disable_most_optimizations")
  return little, compiler.get_compile_options


@functools.cache
def cold_capacity() -> int:
  """Bytes of a cache of `small_model` that runs the programs of `cold_runs`."""
  return cold_runs().cache(last_placement()).stats().capacity_bytes


def last_placement() -> PlacementPolicy:
  """A state at the end of every entry."""
  return PlacementPolicy("last", chunk=16)


def answers() -> Answers:
  """What requests to `small_model` answer alone, to compare with."""
  return _answers(_compiling())


@functools.cache
def _answers(compiling: tuple) -> Answers:
  del compiling
  return Answers(cold_runs(), seed=0, longest=LONGEST)
