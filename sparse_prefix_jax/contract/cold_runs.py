"""Cold runs: what the same tokens alone give, without a cache."""

import dataclasses
import functools

import jax
import numpy as np

from sparse_prefix_jax.cache.choices import divided_capacity
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime.plan import Segment, build_plan
from sparse_prefix_jax.runtime.pools import allocate
from sparse_prefix_jax.runtime.programs import freeze
from sparse_prefix_jax.runtime.run import all_rows, run_plan
from sparse_prefix_jax.serving.decode import decode
from sparse_prefix_jax.serving.prefill import prefill


@dataclasses.dataclass(frozen=True)
class Cold:
  """A cold prefill of some tokens alone.

  Attributes:
    logits: Of every token. [t vocab]
    pools: Slot i holds the state after i + 1 chunks, page i those of chunk i.
  """

  logits: np.ndarray
  pools: list[np.ndarray]


class ColdRuns:
  """Cold runs of one model, each made once: what everything is compared with.

  A prefill goes around the cache, straight through the programs on pools of
  zeros. Decoding runs alone in a cache that stores nothing.

  Args:
    model: Parameters and configuration.
    longest: Longest run in tokens.
  """

  def __init__(self, model: HybridDecoder, longest: int) -> None:
    self.model = model
    self._frozen = freeze(model)
    self._chunks = -(-longest // model.config.numerics.chunk)
    self._runs: dict[bytes, Cold] = {}
    self._twins: dict[tuple[bytes, int], _Twin] = {}

  def cache(
    self, placement: PlacementPolicy, eviction: str | None = None
  ) -> PrefixCache:
    """An empty cache of the one size."""
    return PrefixCache(
      self.model,
      capacity=self._capacity,
      placement=placement,
      eviction=eviction,
    )

  def prefill(self, tokens: np.ndarray) -> Cold:
    """All chunks in one plan on fresh pools, capturing after every chunk.

    Args:
      tokens: Ids, int32, at least one. [t]

    Returns:
      Logits of every token, and the pools as the run left them.
    """
    key = tokens.tobytes()
    if key not in self._runs:
      self._runs[key] = self._run(tokens)
    return self._runs[key]

  @functools.cached_property
  def _capacity(self) -> int:
    """Room for a few sequences with a state at every lattice point.

    One size, so that cold runs and schedules share their compiled programs.
    """
    config = self.model.config
    capacity = 8 * self._chunks * (state_bytes(config) + page_bytes(config))
    # What a cache reserves for the longest sequence may leave few slots.
    while min(self._split(capacity)) < self._chunks + 2:
      capacity *= 2
    return capacity

  def _split(self, capacity: int) -> tuple[int, int]:
    """Slots and pages that a cache of that many bytes begins with."""
    divided = divided_capacity(self.model.config, capacity)
    return divided.split(divided.first)

  def _run(self, tokens: np.ndarray) -> Cold:
    config, chunk = self.model.config, self.model.config.numerics.chunk
    slots, pages = self._split(self._capacity)
    pools = allocate(self.model, slots=slots, pages=pages)
    full = range(tokens.size // chunk)
    segment = Segment(
      tokens=tokens,
      start=0,
      read=ZERO,
      writes={(i + 1) * chunk: i for i in full},
      spill=slots - 1,  # carries over program ends
      pages=range(-(-tokens.size // chunk)),
    )
    plan = build_plan(config, [segment], slots=slots, pages=pages)
    logits, pools = run_plan(self._frozen, pools, plan, all_rows(plan))
    # Only the slots and pages of whole chunks: a run is kept for long.
    arrays = map(np.asarray, jax.tree.leaves(pools))
    kept = [array[: len(full)].copy() for array in arrays]
    return Cold(logits, kept)

  def decode(self, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Logits after the last token, decoding alone from `prompt` on.

    Args:
      tokens: Prompt and decoded ids, int32. [t]
      prompt: How many of them were prefilled.

    Returns:
      Float32 logits. [vocab]
    """
    twin = self._twins.pop((tokens[:-1].tobytes(), prompt), None)
    if twin is None:
      twin = self._begin(tokens[:-1], prompt)
    logits = twin.step(tokens[-1:])
    self._twins[tokens.tobytes(), prompt] = twin
    return logits

  def _begin(self, tokens: np.ndarray, prompt: int) -> "_Twin":
    """A sequence of its own, from a cold prefill on."""
    chunk = self.model.config.numerics.chunk
    placement = PlacementPolicy("no_cache", chunk=chunk)
    twin = _Twin(self.model, self.cache(placement), tokens[:prompt])
    for token in tokens[prompt:]:
      twin.step(token[None])
    return twin


class _Twin:
  """A sequence that decodes alone, in a cache that stores nothing."""

  def __init__(
    self, model: HybridDecoder, cache: PrefixCache, prompt: np.ndarray
  ) -> None:
    self._model, self._cache = model, cache
    self._sequences = prefill(model, cache, [prompt]).sequences

  def step(self, token: np.ndarray) -> np.ndarray:
    """Logits after one more token."""
    out = decode(self._model, self._cache, self._sequences, token)
    self._sequences = out.sequences
    return out.logits[0]
