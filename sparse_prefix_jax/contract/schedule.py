"""A random life of one cache, compared with cold runs at every step.

Batches of prompts that share prefixes, captures anywhere, decoding through
lattice points, second turns, forks, evictions, releases; before every operation
all free slots and pages are filled with NaN.
"""

import dataclasses

import numpy as np

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.running import SequenceHandle
from sparse_prefix_jax.contract.bits import differing_bits, poison
from sparse_prefix_jax.contract.cold_runs import ColdRuns
from sparse_prefix_jax.contract.stored import compare_stored
from sparse_prefix_jax.placement import SHARED, PlacementPolicy
from sparse_prefix_jax.serving.decode import decode
from sparse_prefix_jax.serving.prefill import prefill


@dataclasses.dataclass
class _Life:
  """A running sequence of a schedule: its handle and its whole past."""

  sequence: SequenceHandle
  tokens: np.ndarray
  prompt: int
  exact: bool


class Schedule:
  """One random schedule; `run` gives the number of differing bits.

  Attributes:
    compared: Bytes compared so far.

  Args:
    cold: Cold runs to compare with; shared by schedules of one model.
    seed: Of everything random in it.
    operations: How many operations.
    longest: Longest sequence in tokens; at most what the model takes.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> model = HybridDecoder(preset("tiny", ladder=(4,)), rngs=nnx.Rngs(0))
    >>> Schedule(ColdRuns(model, 320), seed=0, operations=2, longest=320).run()
    0
  """

  def __init__(
    self, cold: ColdRuns, seed: int, *, operations: int = 8, longest: int = 160
  ) -> None:
    self.random = np.random.default_rng(seed)
    self.cold, self.model = cold, cold.model
    self.config = cold.model.config
    self.longest = min(longest, self.config.numerics.max_length)
    self.chunk = self.config.numerics.chunk
    self.operations = operations
    placement = self._placement()
    queue = str(self.random.choice(["lru", "fifo"]))
    weighs = placement.name in SHARED
    self.cache = cold.cache(placement, None if weighs else queue)
    self._shrink()
    self.pasts = [self._random_tokens(self._length()) for _ in range(2)]
    self.lives: list[_Life] = []
    self.compared = 0

  def run(self) -> int:
    """Runs all operations, then compares everything that is stored.

    Returns:
      Differing bits in logits, states, keys and values; 0 is the contract.
    """
    verbs = (
      [self._prefill] * 3
      + [self._decode] * 3
      + [self._release, self._fork, self._evict]
    )
    bits = 0
    for _ in range(self.operations):
      poison(self.cache)
      bits += verbs[self.random.integers(len(verbs))]()
      self.cache.audit()
    bits += self._stored()
    self.cache.release([life.sequence for life in self.lives])
    return bits + self._stored()

  def _shrink(self) -> None:
    """Allows a random share of the pools, so that it evicts and refuses."""
    index, least = self.cache.store.index, self.longest // self.chunk + 2
    slots, pages = index.budget.slots or 0, index.budget.pages or 0
    smaller = dataclasses.replace(
      index.budget,
      slots=int(self.random.integers(least, slots + 1)),
      pages=int(self.random.integers(least, pages + 1)),
    )
    index.set_budget(smaller)

  def _placement(self) -> PlacementPolicy:
    chunk = self.chunk
    policies = (
      PlacementPolicy("last", chunk=chunk),
      PlacementPolicy("no_cache", chunk=chunk),
      PlacementPolicy("sqrt", chunk=chunk),
      PlacementPolicy("balanced", budget=2, chunk=chunk),
      PlacementPolicy("optimal", budget=2, chunk=chunk),
      PlacementPolicy("block", budget=chunk, chunk=chunk),
      PlacementPolicy("adaptive", chunk=chunk),
    )
    return policies[self.random.integers(len(policies))]

  def _random_tokens(self, size: int) -> np.ndarray:
    ids = self.random.integers(0, self.config.vocab_size, size)
    if self.random.integers(4) == 0:  # repeated tokens: equal keys
      ids = np.resize(ids[:2], size)
    return ids.astype(np.int32)

  def _length(self) -> int:
    """A length, often on a lattice point or one beside it."""
    chunk = self.chunk
    if self.random.integers(2):
      near = chunk * self.random.integers(1, max(2, self.longest // chunk))
      return min(self.longest, int(near + self.random.integers(-1, 2)))
    return int(self.random.integers(1, max(2, self.longest - chunk)))

  def _prompt(self) -> np.ndarray:
    """A prefix of something seen, and usually new tokens behind it."""
    past = self.pasts[self.random.integers(len(self.pasts))]
    cut = [past.size, int(self.random.integers(1, past.size + 1))]
    head = past[: cut[self.random.integers(2)]]
    new = self._random_tokens(int(self.random.integers(0, self.chunk)))
    return np.concatenate([head, new])[: max(1, self.longest - 8)]

  def _captures(self, prompts: list[np.ndarray]) -> list[list[int]] | None:
    if not self.cache.store.stores or self.random.integers(2):
      return None
    lattices = [range(self.chunk, p.size + 1, self.chunk) for p in prompts]
    return [
      [p for p in lattice if self.random.integers(2)] for lattice in lattices
    ]

  def _prefill(self) -> int:
    """A batch of prompts; where there is no room, some release instead."""
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
    """A few steps, of other sequences each time."""
    bits = 0
    for _ in range(int(self.random.integers(1, self.chunk))):
      bits += self._decode_once(exact=False) + self._decode_once(exact=True)
    return bits

  def _decode_once(self, exact: bool) -> int:
    """One token for some of the sequences that decode in that form."""
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
    """Some sequences end; what they became may be a prompt's prefix."""
    keep = [life for life in self.lives if self.random.integers(2)]
    gone = [life for life in self.lives if life not in keep]
    keep_all = self.random.integers(3)
    for life in gone:
      kept = int(self.random.integers(life.tokens.size + 1))
      self.cache.release([life.sequence], keep=None if keep_all else kept)
    self.pasts += [life.tokens for life in gone]
    self.lives = keep
    return 0

  def _fork(self) -> int:
    """One sequence is continued twice."""
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
    """A state goes that nobody holds, or everything does."""
    index = self.cache.store.index
    states = [state for state in index.states if not state.pins]
    if states:
      index.drop(states[self.random.integers(len(states))])
    elif self.random.integers(4) == 0:
      self.cache.flush()
    return 0

  def _stored(self) -> int:
    """Differing bits of every state and page in the tree."""
    found = compare_stored(self.cache, self.cold)
    self.compared += found.size
    return found.bits

  def _compare(self, x: np.ndarray, y: np.ndarray) -> int:
    self.compared += x.nbytes
    return differing_bits(x, y)
