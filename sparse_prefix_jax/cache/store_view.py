"""What can be seen of a store, and what it begins with.

The verbs that change it stand in `cache/store.py`.
"""

from sparse_prefix_jax.cache import resizing
from sparse_prefix_jax.cache.admission import Admission
from sparse_prefix_jax.cache.audit import audit_sequences
from sparse_prefix_jax.cache.counts import Counts, StoreStats, describe_store
from sparse_prefix_jax.cache.divided_capacity import ShareFollower
from sparse_prefix_jax.cache.index import Budget, Eviction, Match
from sparse_prefix_jax.cache.recent import Window
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import (
  Endings,
  Running,
  SequenceHandle,
  check_handle,
)
from sparse_prefix_jax.cache.verbs import index_for
from sparse_prefix_jax.placement import Planner


class StoreView:
  """Index, planner and running sequences, and looks at them.

  Args:
    budget: What may be held.
    planner: Where new entries keep states.
    chunk: Tokens between lattice points, c.
    eviction: Which state goes first, of `eviction_for` the placement.
    stores: Whether anything outlives its sequence.

  Attributes:
    index: What is stored, and where.
    planner: Where new entries keep states.
    chunk: Tokens between lattice points, c.
    stores: Whether anything outlives its sequence.
    counts: What requests found, over the life of the store.
    chooser: Follows requests to choose a share for states; None for none.
  """

  def __init__(
    self,
    budget: Budget,
    planner: Planner,
    *,
    chunk: int,
    eviction: Eviction | None = None,
    stores: bool = True,
  ) -> None:
    """Starts empty; see the class."""
    self.index = index_for(budget, planner, eviction, chunk)
    self.planner, self._eviction = planner, eviction
    self.chunk = chunk
    self.stores = stores
    self.counts = Counts()
    self._window = Window(chunk)
    self.chooser: ShareFollower | None = None
    self._admission = Admission(self.index, planner, chunk=chunk, stores=stores)
    self._running: dict[int, Running] = {}
    self._swapped: dict[int, Running] = {}
    self._ended = Endings()

  @property
  def running(self) -> tuple[Running, ...]:
    """All running sequences, oldest first."""
    return tuple(self._running.values())

  @property
  def swapped(self) -> tuple[Running, ...]:
    """All sequences that wait in the memory of the host."""
    return tuple(self._swapped.values())

  @property
  def learned_bytes(self) -> int:
    """Host memory of what states are worth, with cues and shares."""
    return self.planner.learned_bytes + (
      self.chooser.learned_bytes if self.chooser else 0
    )

  def _found(self, handle: SequenceHandle) -> Running:
    """The sequence that a handle stands for; ValueError if there is none."""
    check_handle(handle)
    running = self._running.get(handle.number)
    if handle.number in self._swapped:
      raise ValueError(f"{handle} waits in the host; swap it in first.")
    if running is None:
      raise ValueError(f"{handle} {self.why_ended(handle)}.")
    if running.length != handle.length:
      raise ValueError(
        f"{handle} was decoded further, to {running.length} tokens; use the "
        "handle that decode returned."
      )
    return running

  def held(self, running: Running) -> Running:
    """A sequence that has not ended; others may have the slots of one that has.

    Args:
      running: The sequence, in the pools or in the host.

    Raises:
      ValueError: If it has ended, with why.
    """
    if running.number in self._running or running.number in self._swapped:
      return running
    raise ValueError(f"{running.handle} {self.why_ended(running.handle)}.")

  def why_ended(self, handle: SequenceHandle) -> str:
    """What became of a sequence that does not run: the end of a sentence.

    Args:
      handle: Of the sequence.
    """
    return self._ended.why(handle)

  def match(self, request: Request) -> Match:
    """What is stored of a prompt and why it goes no deeper; nothing changes."""
    return self._admission.match(request)

  def check_resize(
    self, slots: int, pages: int, *, spare: tuple[int, int] = (0, 0)
  ) -> None:
    """Refuses what `PrefixStore.begin_resize` would refuse; nothing changes.

    Args:
      slots: That there would be.
      pages: That there would be.
      spare: Slots and pages that must be left beside what runs.

    Raises:
      CapacityError: If running sequences hold more.
    """
    resizing.limits_with_room(self.index, slots, pages, spare)

  def stats(self) -> StoreStats:
    """What is held now, and what requests found so far."""
    recent = self._window.copy(self.index.budget)
    return describe_store(
      self.index,
      self.counts,
      len(self._running),
      recent,
      self.chooser,
      learned_bytes=self.learned_bytes,
    )

  def audit(self) -> None:
    """Recomputes every count, and what sequences hold of it; for tests.

    Raises:
      AssertionError: One sentence on the first thing that does not add up.
    """
    self.index.check()
    audit_sequences(self.index, self.running, self.swapped, self.chunk)
