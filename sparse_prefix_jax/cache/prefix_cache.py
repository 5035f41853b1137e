"""PrefixCache: match, pin, reserve, insert, release, over one model's pools."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several

import jax
import numpy as np

from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  Match,
  Pin,
  PrefixIndex,
  Stats,
  token_blocks,
)
from sparse_prefix_jax.cache.running import Running, Sequence
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.runtime.pools import (
  allocate,
  copy_sequence,
  split_capacity,
)
from sparse_prefix_jax.runtime.programs import FrozenModel, freeze

_NUMBERS = itertools.count()  # of sequences, over all caches


class PrefixCache:
  """Exact states at sparse positions, keys and values, under one byte budget.

  A host object that owns device arrays. `prefill` and `decode` work on it; what
  is held (stored entries and running sequences together) never exceeds
  `capacity`. Nor does the device memory of its pools, with one exception: on a
  TPU, pools of heads of 64 are padded and take twice the bytes counted here.

  Attributes:
    model: The model whose states it keeps.
    config: Its configuration.
    pools: Device arrays; programs donate and replace them.
    index: What is stored, and where.
    planner: Where new entries keep states.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity=4 << 20, placement="last")
    >>> cache.stats().held_bytes
    0
  """

  def __init__(
    self,
    model: HybridDecoder,
    *,
    capacity: int,
    placement: PlacementPolicy | str = "last",
    eviction: str = "lru",
    state_share: float = 0.5,
  ) -> None:
    """Allocates the pools.

    Args:
      model: Whose states to keep.
      capacity: Bytes for states, keys and values, stored or in use.
      placement: A policy, or the name of one without a budget.
      eviction: "lru" or "fifo".
      state_share: Share of the capacity that is allocated for states; the rest
        is for keys and values. A model with one kind of layers uses all.

    Raises:
      ValueError: If a choice is unknown or out of range, or the capacity is
        too small for one sequence of two slots and one page.
    """
    self.config = model.config
    if not 0 < state_share < 1:
      raise ValueError(f"state_share is {state_share}; it must be in (0, 1).")
    slots, pages = split_capacity(self.config, capacity, state_share)
    if slots < 2 or pages < 1:
      raise ValueError(
        f"capacity is {capacity} bytes, which holds {max(slots, 0)} states and "
        f"{max(pages, 0)} pages; a sequence needs 2 states of "
        f"{state_bytes(self.config)} and 1 page of {page_bytes(self.config)}."
      )
    if isinstance(placement, str):
      placement = PlacementPolicy(placement, chunk=self.config.chunk)
    if placement.chunk != self.config.chunk:
      raise ValueError(
        f"placement has chunk {placement.chunk}; the model has "
        f"{self.config.chunk}."
      )
    self.model = model
    self.planner = Planner(
      placement, depths=max(2, self.config.max_length // self.config.chunk)
    )
    self.index = PrefixIndex(
      Budget(
        capacity_bytes=capacity,
        slot_bytes=state_bytes(self.config),
        page_bytes=page_bytes(self.config),
        slots=slots,
        pages=pages,
      ),
      eviction=eviction,
    )
    self.pools = allocate(model, slots=slots, pages=pages)
    self._frozen = freeze(model)
    self._running: dict[int, Running] = {}

  @property
  def stores(self) -> bool:
    """False for `no_cache`: sequences run, nothing is kept of them."""
    return self.planner.policy.name != "no_cache"

  @property
  def sequences(self) -> tuple[Sequence, ...]:
    """Handles of all running sequences, oldest first."""
    return tuple(Sequence(n, r.length) for n, r in self._running.items())

  def stats(self) -> Stats:
    """What is held: entries, states, pages, bytes; and evictions so far."""
    return self.index.stats

  def check_model(self, model: HybridDecoder) -> FrozenModel:
    """The model's parameters; states of one model mean nothing to another.

    Parameters that are the same arrays pass at once; others are hashed.

    Raises:
      ValueError: If configuration or weights are not those of this cache.
    """
    if model.config != self.config:
      changed = [
        f"{field.name} = {getattr(model.config, field.name)!r} instead of "
        f"{getattr(self.config, field.name)!r}"
        for field in dataclasses.fields(self.config)
        if getattr(model.config, field.name) != getattr(self.config, field.name)
      ]
      raise ValueError(
        f"model has another configuration than the cache: {', '.join(changed)}."
      )
    frozen, known = freeze(model), self._frozen
    if any(leaf.is_deleted() for leaf in known.leaves):
      raise ValueError(
        "model: the weights that the cache was made for are gone (donated to "
        "a training step, for example); make a new PrefixCache."
      )
    if all(x is y for x, y in zip(frozen.leaves, known.leaves, strict=True)):
      return known
    if _fingerprint(frozen.leaves) != _fingerprint(known.leaves):
      raise ValueError(
        "model has other weights than the cache was made for; make a new "
        "PrefixCache, since stored states belong to the old weights."
      )
    self._frozen = frozen
    return frozen

  def check_fits(self, length: int) -> None:
    """Refuses what could not be held even by an empty cache.

    Raises:
      CapacityError: With what a sequence of that length needs.
    """
    budget, pages = self.index.budget, -(-length // self.config.chunk)
    if not budget.fits(2, pages):
      raise CapacityError(
        f"a sequence of {length} tokens needs 2 states and {pages} pages, "
        f"{budget.bytes_of(2, pages)} bytes; the cache holds {budget.slots} "
        f"states and {budget.pages} pages in {budget.capacity_bytes} bytes."
      )

  def match(self, tokens: np.ndarray, *, salt: bytes = b"") -> Match:
    """The longest stored prefix; it resumes before the last token."""
    blocks, tail = token_blocks(tokens, self.config.chunk)
    limit = (tokens.size - 1) // self.config.chunk
    return self.index.match(blocks, tail, salt=salt, limit=limit)

  def pin(self, tokens: np.ndarray, match: Match, *, salt: bytes = b"") -> Pin:
    """Protects what a match offers until `admit`, or `index.unpin`."""
    blocks, _ = token_blocks(tokens, self.config.chunk)
    return self.index.pin(blocks, match.resume_blocks, salt=salt)

  def admit(
    self,
    tokens: np.ndarray,
    match: Match,
    pin: Pin,
    *,
    anchors: tuple[int, ...] = (),
    placed: bool = True,
    salt: bytes = b"",
  ) -> int:
    """Reserves what a request cannot do without: two slots and its pages.

    Args:
      tokens: The prompt.
      match: Of that prompt.
      pin: Of that match; the sequence's from here on.
      anchors: Lattice positions that its entry keeps besides the placement's.
      placed: Whether the placement has a say.
      salt: The tenant.

    Returns:
      The number of the new running sequence.

    Raises:
      CapacityError: If it cannot be held; nothing has changed then.
    """
    pages = -(-tokens.size // self.config.chunk) - match.resume_blocks
    lease = self.index.reserve(2, pages)
    number = next(_NUMBERS)
    self._running[number] = Running(
      salt=salt,
      tokens=tokens,
      pages=[*match.pages, *lease.pages],
      running_slot=lease.slots[0],
      own_slot=lease.slots[1],
      lattice_slot=match.slot,
      stored=match.resume_blocks,
      anchors=anchors,
      placed=placed,
      pin=pin,
    )
    return number

  def reserve_captures(self, wanted: int) -> tuple[int, ...]:
    """As many slots as the capacity has, up to `wanted`."""
    while wanted:
      try:
        return self.index.reserve(wanted, 0).slots
      except CapacityError:
        wanted -= 1
    return ()

  def running(self, sequence: Sequence) -> Running:
    """What the cache knows of a handle.

    Raises:
      ValueError: If it was released, decoded further, or is another cache's.
    """
    record = self._running.get(sequence.number)
    if record is None:
      raise ValueError(f"{sequence} was released, or belongs to another cache.")
    if record.length != sequence.length:
      raise ValueError(
        f"{sequence} was decoded further, to {record.length} tokens; use the "
        "handle that decode returned."
      )
    return record

  def handle(self, number: int) -> Sequence:
    """The current handle of a running sequence."""
    return Sequence(number, self._running[number].length)

  def store(self, record: Running, slots: Mapping[int, int]) -> None:
    """Inserts the canonical chunks of a running sequence.

    Args:
      record: Its full chunks have been computed by the prefill program.
      slots: Leased slot by depth in chunks. Where the tree has a state
        already, it keeps its own; the bits are equal.
    """
    chunk = self.config.chunk
    blocks, tail = token_blocks(record.tokens, chunk)
    depth = len(blocks)
    kept = {*record.anchors}
    if record.placed:
      kept |= {*self.planner.positions(record.length, record.features)}
    done = self.index.insert(
      blocks,
      tail,
      record.pages[:depth],
      slots,
      salt=record.salt,
      claim=[p // chunk for p in kept],
      replace=record.entry,
    )
    pin = self.index.pin(blocks, depth, salt=record.salt)
    if record.pin is not None:
      self.index.unpin(record.pin)
    if record.features is not None:
      done.entry.features = record.features._replace(length=record.length)
    record.pages[:depth] = done.pages
    record.entry, record.pin, record.stored = done.entry, pin, depth
    if depth in slots:
      record.lattice_slot = done.slots[depth]

  def release(self, sequences: Iterable[Sequence]) -> None:
    """Ends sequences: inserts what decoding completed, frees the rest.

    Raises:
      ValueError: If a handle is not running, or named twice.
    """
    sequences = list(sequences)
    records = [self.running(sequence) for sequence in sequences]
    if len({s.number for s in sequences}) != len(sequences):
      raise ValueError("sequences to release: one is named twice.")
    for sequence, record in zip(sequences, records, strict=True):
      if self.stores:
        self._store_decoded(record)
      self.drop(sequence.number)

  def drop(self, number: int) -> None:
    """Frees what a sequence owns and unpins the rest; inserts nothing."""
    record = self._running.pop(number)
    slots = {record.running_slot, record.own_slot}
    self.index.free(sorted(slots), record.leased_pages())
    if record.pin is not None:
      self.index.unpin(record.pin)
    if not self.stores and record.entry and record.entry in self.index:
      # Without a cache a fork stores, so that both can share pages, for as
      # long as one of them runs.
      self.index.evict(record.entry)

  def recover(self) -> None:
    """After an interruption: if a program took the pools, start empty.

    What was stored or running is lost then; otherwise nothing changes.
    """
    if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.pools)):
      return
    for number in list(self._running):
      self.drop(number)
    self.index.clear()
    budget = self.index.budget
    self.pools = allocate(
      self.model, slots=budget.slots or 0, pages=budget.pages or 0
    )

  def fork(self, sequence: Sequence) -> Sequence:
    """A second sequence with the same past, to be continued differently.

    Copies the running slot, the lattice slot of its own and the running page;
    shares the rest.

    Raises:
      ValueError: If the handle is not running.
      CapacityError: If there is no room; nothing has changed then.
    """
    record = self.running(sequence)
    chunk = self.config.chunk
    blocks, _ = token_blocks(record.tokens, chunk)
    depth = len(blocks)
    partial = len(record.pages) - depth
    lease = self.index.reserve(2, partial)
    if record.stored < depth:
      self.store(record, {})
    own = record.lattice_slot == record.own_slot
    number = next(_NUMBERS)
    twin = Running(
      salt=record.salt,
      tokens=record.tokens,
      pages=[*record.pages[:depth], *lease.pages],
      running_slot=lease.slots[0],
      own_slot=lease.slots[1],
      lattice_slot=lease.slots[1] if own else record.lattice_slot,
      stored=record.stored,
      pin=self.index.pin(blocks, depth, salt=record.salt),
      anchors=record.anchors,
      placed=record.placed,
      decoded=record.decoded,
      exact=record.exact,
      features=record.features,
    )
    self._copy(record, twin)
    self._running[number] = twin
    return self.handle(number)

  def _copy(self, source: Running, target: Running) -> None:
    page = (source.pages[-1], target.pages[-1]) if source.pages else (0, 0)
    self.pools = copy_sequence(
      self.pools,
      (
        np.array([source.running_slot, source.own_slot], np.int32),
        np.array([target.running_slot, target.own_slot], np.int32),
      ),
      (np.int32(page[0]), np.int32(page[1])),
    )

  def _store_decoded(self, record: Running) -> None:
    """Inserts chunks completed by decoding, with the state at their end."""
    if not record.decoded:
      return
    depth = record.length // self.config.chunk
    keep = record.lattice_slot == record.own_slot
    self.store(record, {depth: record.own_slot} if keep else {})
    if keep:  # the slot is the tree's now, or was a duplicate and is free
      record.own_slot = record.running_slot


def _fingerprint(leaves: Several[jax.Array]) -> bytes:
  """Hash of all weights, their shapes and dtypes."""
  digest = hashlib.blake2b(digest_size=16)
  for leaf in leaves:
    digest.update(f"{leaf.shape}{leaf.dtype}".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.digest()
