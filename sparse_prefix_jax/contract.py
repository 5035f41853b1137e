"""The contract, tried out: random schedules against cold runs, bit by bit.

A schedule is a random life of one cache: batches of prompts that share
prefixes, captures anywhere, decoding through lattice points, second turns,
forks, evictions, releases; before every operation all free slots and pages are
filled with NaN. Whatever comes out, and whatever is stored, is compared with
what a cold run of the same tokens alone gives. The promise is zero differing
bits; run it on the device and the configuration that you serve.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.pools import split_capacity
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.running import Sequence
from sparse_prefix_jax.decode import decode
from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.layers import PagePools
from sparse_prefix_jax.models.decoder import HybridDecoder, Pools, map_pools
from sparse_prefix_jax.models.plan import Segment, build_plan
from sparse_prefix_jax.models.run import all_rows, run_plan
from sparse_prefix_jax.models.step import freeze
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.prefill import prefill


def differing_bits(x: Any, y: Any) -> int:
  """How many bits of two arrays of one shape and dtype differ."""
  x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
  if x.shape != y.shape or x.dtype != y.dtype:
    raise ValueError(
      f"arrays are {x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}; they "
      "must agree in shape and dtype."
    )
  if x.size == 0:
    return 0
  different = np.bitwise_xor(x.view(np.uint8), y.view(np.uint8))
  return int(np.bitwise_count(different).sum())


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
  """Cold runs of one model, each made once.

  Args:
    model: Parameters and configuration.
    longest: Longest run in tokens.
  """

  def __init__(self, model: HybridDecoder, longest: int) -> None:
    self.model = model
    self._frozen = freeze(model)
    # Room for a few sequences with a state at every lattice point; one size,
    # so that cold runs and schedules share their compiled programs.
    self._capacity = 8 * -(-longest // model.config.chunk) * _chunk_bytes(model)
    self._runs: dict[bytes, Cold] = {}
    self._twins: dict[tuple[bytes, int], _Twin] = {}

  def cache(
    self, placement: PlacementPolicy, eviction: str = "lru"
  ) -> PrefixCache:
    """An empty cache of the one size."""
    return PrefixCache(
      self.model,
      capacity=self._capacity,
      placement=placement,
      eviction=eviction,
    )

  def prefill(self, tokens: np.ndarray) -> Cold:
    """All chunks in one plan on fresh pools, capturing after every chunk."""
    key = tokens.tobytes()
    if key not in self._runs:
      self._runs[key] = self._run(tokens)
    return self._runs[key]

  def _run(self, tokens: np.ndarray) -> Cold:
    config = self.model.config
    slots, pages = split_capacity(config, self._capacity, 0.5)
    pools = self.model.init_pools(slots=slots, pages=pages)
    full = range(tokens.size // config.chunk)
    segment = Segment(
      tokens=tokens,
      start=0,
      read=ZERO,
      writes={(i + 1) * config.chunk: i for i in full},
      spill=slots - 1,  # carries over program ends
      pages=range(-(-tokens.size // config.chunk)),
    )
    plan = build_plan(config, [segment], slots=slots, pages=pages)
    logits, pools = run_plan(self._frozen, pools, plan, all_rows(plan))
    return Cold(logits, [np.asarray(leaf) for leaf in jax.tree.leaves(pools)])

  def decode(self, tokens: np.ndarray, prompt: int) -> np.ndarray:
    """Logits after the last token, decoding alone from `prompt` on."""
    twin = self._twins.pop((tokens[:-1].tobytes(), prompt), None)
    if twin is None:
      twin = self._begin(tokens[:-1], prompt)
    logits = twin.step(tokens[-1:])
    self._twins[tokens.tobytes(), prompt] = twin
    return logits

  def _begin(self, tokens: np.ndarray, prompt: int) -> "_Twin":
    """A sequence of its own, from a cold prefill on."""
    placement = PlacementPolicy("no_cache", chunk=self.model.config.chunk)
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


def _chunk_bytes(model: HybridDecoder) -> int:
  pools = model.init_pools(slots=1, pages=1)
  return sum(leaf.nbytes for leaf in jax.tree.leaves(pools))


def _fill(
  pools: Pools, slots: Int32[Array, "m"], pages: Int32[Array, "n"]
) -> Pools:
  """NaN in some slots and pages; indices past the end are dropped."""

  def fill(index: Array) -> Callable[[Array], Array]:
    return lambda pool: pool.at[index].set(
      jnp.asarray(jnp.nan, pool.dtype), mode="drop"
    )

  return map_pools(pools, fill(slots), fill(pages))


_fill_jit = jax.jit(_fill, donate_argnames=("pools",))


def poison(cache: PrefixCache) -> None:
  """Fills every slot and page that nobody holds with NaN."""
  unheld, budget = cache.index.unheld(), cache.index.budget
  slots = np.full(budget.slots or 0, budget.slots, np.int32)
  pages = np.full(budget.pages or 0, budget.pages, np.int32)
  slots[: len(unheld.slots)] = unheld.slots
  pages[: len(unheld.pages)] = unheld.pages
  cache.pools = _fill_jit(cache.pools, slots, pages)


@dataclasses.dataclass
class _Life:
  """A running sequence of a schedule: its handle and its whole past."""

  sequence: Sequence
  tokens: np.ndarray
  prompt: int
  exact: bool


class Schedule:
  """One random schedule; `run` gives the number of differing bits.

  Args:
    cold: Cold runs to compare with; shared by schedules of one model.
    seed: Of everything random in it.
    operations: How many operations.
    longest: Longest sequence in tokens.
  """

  def __init__(
    self, cold: ColdRuns, seed: int, *, operations: int = 8, longest: int = 160
  ) -> None:
    self.random = np.random.default_rng(seed)
    self.cold, self.model, self.longest = cold, cold.model, longest
    self.config = cold.model.config
    self.operations = operations
    self.cache = cold.cache(
      self._placement(), str(self.random.choice(["lru", "fifo"]))
    )
    self._shrink()
    self.pasts = [self._random_tokens(self._length()) for _ in range(2)]
    self.lives: list[_Life] = []
    self.compared = 0

  def run(self) -> int:
    """Runs all operations and compares everything; differing bits."""
    verbs = (
      [self._prefill] * 3
      + [self._decode] * 3
      + [self._release, self._fork, self._evict]
    )
    bits = 0
    for _ in range(self.operations):
      poison(self.cache)
      bits += verbs[self.random.integers(len(verbs))]()
      self.cache.index.check()
    bits += sum(self._stored())
    self.cache.release([life.sequence for life in self.lives])
    return bits + sum(self._stored())

  def _shrink(self) -> None:
    """Leases a random share of the cache, so that it evicts and refuses."""
    unheld = self.cache.index.unheld()
    least = self.longest // self.config.chunk + 2
    self.cache.index.reserve(
      int(self.random.integers(0, len(unheld.slots) - least)),
      int(self.random.integers(0, len(unheld.pages) - least)),
    )

  def _placement(self) -> PlacementPolicy:
    chunk = self.config.chunk
    policies = (
      PlacementPolicy("last", chunk=chunk),
      PlacementPolicy("no_cache", chunk=chunk),
      PlacementPolicy("sqrt", chunk=chunk),
      PlacementPolicy("balanced", budget=2, chunk=chunk),
      PlacementPolicy("optimal", budget=2, chunk=chunk),
      PlacementPolicy("block", budget=chunk, chunk=chunk),
    )
    return policies[self.random.integers(len(policies))]

  def _random_tokens(self, size: int) -> np.ndarray:
    ids = self.random.integers(0, self.config.vocab_size, size)
    if self.random.integers(4) == 0:  # repeated tokens: equal keys
      ids = np.resize(ids[:2], size)
    return ids.astype(np.int32)

  def _length(self) -> int:
    """A length, often on a lattice point or one beside it."""
    chunk = self.config.chunk
    if self.random.integers(2):
      near = chunk * self.random.integers(1, self.longest // chunk)
      return int(near + self.random.integers(-1, 2))
    return int(self.random.integers(1, self.longest - chunk))

  def _prompt(self) -> np.ndarray:
    """A prefix of something seen, and usually new tokens behind it."""
    past = self.pasts[self.random.integers(len(self.pasts))]
    cut = [past.size, int(self.random.integers(1, past.size + 1))]
    head = past[: cut[self.random.integers(2)]]
    new = self._random_tokens(int(self.random.integers(0, self.config.chunk)))
    return np.concatenate([head, new])[: self.longest - 8]

  def _captures(self, prompts: list[np.ndarray]) -> list[list[int]] | None:
    if not self.cache.stores or self.random.integers(2):
      return None
    lattices = [
      range(self.config.chunk, p.size + 1, self.config.chunk) for p in prompts
    ]
    return [
      [p for p in lattice if self.random.integers(2)] for lattice in lattices
    ]

  def _prefill(self) -> int:
    prompts = [self._prompt() for _ in range(self.random.integers(1, 4))]
    try:
      out = prefill(
        self.model,
        self.cache,
        prompts,
        capture=self._captures(prompts),
        all_logits=True,
      )
    except CapacityError:
      return self._release()
    bits = 0
    for prompt, logits, sequence in zip(
      prompts, out.logits, out.sequences, strict=True
    ):
      bits += self._compare(
        logits, self.cold.prefill(prompt).logits[-len(logits) :]
      )
      exact = bool(self.random.integers(5) == 0)
      self.lives.append(_Life(sequence, prompt, prompt.size, exact))
      self.pasts.append(prompt)
    return bits

  def _decode(self) -> int:
    bits = 0
    for _ in range(int(self.random.integers(1, self.config.chunk))):
      bits += self._decode_once(exact=False) + self._decode_once(exact=True)
    return bits

  def _decode_once(self, exact: bool) -> int:
    chosen = [
      life
      for life in self.lives
      if life.exact == exact
      and life.tokens.size < self.longest
      and self.random.integers(4)
    ]
    if not chosen:
      return 0
    order = self.random.permutation(len(chosen))
    chosen = [chosen[i] for i in order]
    tokens = self._random_tokens(len(chosen))
    handles = [life.sequence for life in chosen]
    try:
      out = decode(self.model, self.cache, handles, tokens, exact=exact)
    except CapacityError:
      return 0
    bits = 0
    for i, life in enumerate(chosen):
      life.sequence = out.sequences[i]
      life.tokens = np.append(life.tokens, tokens[i])
      if exact:
        expected = self.cold.prefill(life.tokens).logits[-1]
      else:
        expected = self.cold.decode(life.tokens, life.prompt)
      bits += self._compare(out.logits[i], expected)
    return bits

  def _release(self) -> int:
    keep = [life for life in self.lives if self.random.integers(2)]
    gone = [life for life in self.lives if life not in keep]
    self.cache.release([life.sequence for life in gone])
    self.pasts += [life.tokens for life in gone]
    self.lives = keep
    return 0

  def _fork(self) -> int:
    if not self.lives:
      return 0
    life = self.lives[self.random.integers(len(self.lives))]
    try:
      twin = self.cache.fork(life.sequence)
    except CapacityError:
      return 0
    self.lives.append(dataclasses.replace(life, sequence=twin))
    return 0

  def _evict(self) -> int:
    entries = self.cache.index.entries
    if entries:
      self.cache.index.evict(entries[self.random.integers(len(entries))])
    return 0

  def _stored(self) -> Iterator[int]:
    """Differing bits of every state and page in the tree."""
    layers = [
      (isinstance(layer, PagePools), np.asarray(leaf))
      for layer in self.cache.pools
      for leaf in layer
    ]
    for entry in self.cache.index.entries:
      nodes = list(entry.node.upwards())[::-1]
      if not nodes:
        continue
      keys = b"".join(n.key for n in nodes if isinstance(n.key, bytes))
      cold = self.cold.prefill(np.frombuffer(keys, ">i4").astype(np.int32))
      for node in nodes:
        held = node.slot.number if node.slot else None
        for (paged, pool), expected in zip(layers, cold.pools, strict=True):
          number = node.page if paged else held
          if number is not None:
            yield self._compare(pool[number], expected[node.depth - 1])

  def _compare(self, x: np.ndarray, y: np.ndarray) -> int:
    self.compared += x.nbytes
    return differing_bits(x, y)
