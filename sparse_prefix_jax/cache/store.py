"""PrefixStore: the one owner of a request's life. Integers, no arrays.

    match -> open -> (next_segment -> commit)* -> (advance -> append)* -> close

What is stored, where new states go and what a running sequence holds change in
these verbs and nowhere else, and each happens entirely or not at all. The
prefix cache is this store with the pools of a model; a simulation is this store
alone.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager

from sparse_prefix_jax.cache import resizing
from sparse_prefix_jax.cache.admission import SEQUENCE_NUMBERS, Admission
from sparse_prefix_jax.cache.canonical import (
  commit_decoded,
  commit_prompt,
  store_past,
)
from sparse_prefix_jax.cache.decoding import append, book, fork, retract
from sparse_prefix_jax.cache.index import Lease, Renumbering
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import (
  Copies,
  Running,
  SequenceHandle,
  copies_of,
)
from sparse_prefix_jax.cache.segments import next_segment
from sparse_prefix_jax.cache.store_view import StoreView
from sparse_prefix_jax.cache.swapping import (
  await_state,
  come_back,
  leave,
  private_parts,
)
from sparse_prefix_jax.cache.verbs import (
  collecting_later,
  entirely,
  index_for,
  of_sequence,
)
from sparse_prefix_jax.runtime.segment import Segment


class PrefixStore(StoreView):
  """Index, planner and running sequences, for one model or none.

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
    counts: What requests found, over the life of the store.
    chooser: Follows requests to choose a share for states; None for none.

  >>> from sparse_prefix_jax.cache.index import Budget
  >>> from sparse_prefix_jax.placement import PlacementPolicy, Planner
  >>> planner = Planner(PlacementPolicy("last"), depths=16)
  >>> store = PrefixStore(Budget(10_000, 100, 10), planner, chunk=64)
  >>> for question in (b"a", b"b"):
  ...   request = Request(200, ("x", "y", "z"), question)
  ...   (running,) = store.open([request])
  ...   store.commit(running, store.next_segment(running))
  ...   store.close(running)
  >>> running.match.resume_blocks, store.index.held_bytes
  (3, 130)
  """

  @entirely
  def find(self, handle: SequenceHandle) -> Running:
    """The sequence that a handle stands for.

    Raises:
      ValueError: If it is no handle, was released, decoded further, or is
        another store's.
    """
    return self._found(handle)

  def check_fits(self, request: Request) -> None:
    """Refuses what could not be held even by an empty store.

    Another share for states may have room for it: what chooses one is told.

    Raises:
      CapacityError: With what a sequence of that length needs.
    """
    budget, pages = self.index.budget, -(-request.length // self.chunk)
    if budget.fits(2, pages):
      return
    if self.chooser:
      self.chooser.refused(request)
    raise budget.shortage(request.length, 2, pages)

  @collecting_later
  @entirely
  def open(
    self,
    requests: Sequence[Request],
    also: Sequence[Collection[int]] | None = None,
  ) -> list[Running]:
    """Begins a wave of requests as one act.

    All matches are pinned before anything is evicted. Where pins are in the way
    the wave gives its matches up and starts cold (`no_room`). Overlaps are seen
    in order, then all are placed, and slots leased as far as there is room.

    Args:
      requests: Checked.
      also: Per request, lattice positions that another request waits for.

    Returns:
      The running sequences, in the order of the requests.

    Raises:
      CapacityError: If they do not fit beside what runs; nothing is held then.
    """
    for request in requests:
      self.check_fits(request)
    opened = self._admission.begin(requests, also or [()] * len(requests))
    self._running |= {running.number: running for running in opened}
    try:
      for running in opened:
        if self.chooser and not running.request.observed:
          self.chooser.follow(running)
        self.index.use(running.match)
    except BaseException:
      for running in opened:
        self.drop(running)
      raise
    for running in opened:
      if not running.request.observed:
        self.counts.open(running, self.chunk)
    return opened

  def next_segment(
    self, running: Running, limit: int | None = None
  ) -> Segment | None:
    """What to compute next of a sequence by the prefill program; a look.

    First its prompt, then the chunk that decoding has just completed, or with
    `exact` the partial one as far as it goes.

    Args:
      running: The sequence.
      limit: At most so many tokens of the prompt, floored to whole chunks; at
        least one chunk, and None for all of it.

    Returns:
      The segment; None where nothing is left.
    """
    return next_segment(running, self.chunk, limit)

  @of_sequence
  def commit(self, running: Running, segment: Segment) -> None:
    """The program of a segment was dispatched.

    Whole chunks of the prompt become nodes that the sequence's pin holds, with
    the states captured in them; after its last token the prompt is remembered.
    A chunk that decoding completed stays the sequence's own until it is closed.
    """
    if running.prefilled:
      commit_decoded(self.index, running, segment, self.chunk)
      return
    commit_prompt(self.index, running, segment, self.chunk, stores=self.stores)
    if running.prefilled:
      self._window.prompt(running)

  @entirely
  def catch_up(self) -> None:
    """Learns what the next prompt would wait for: a program is under way."""
    if self.chooser:
      self.chooser.catch_up()
    self.planner.catch_up()
    if worth := self.index.worth:
      with self.index.asked():
        worth.catch_up()

  @entirely
  def advance(
    self, sequences: Sequence[Running], *, exact: bool = False
  ) -> None:
    """Books the position of one more token for each, and a page it may begin.

    Args:
      sequences: Each once.
      exact: Whether they decode by re-running their chunk, all of it or never.

    Raises:
      ValueError: If a sequence has decoded in the other form, or had a token
        taken back.
      CapacityError: If there is no page for a new chunk. Nothing has changed.
    """
    book(self.index, [*map(self.held, sequences)], self.chunk, exact)

  def append(self, running: Running, token: int) -> None:
    """Notes the id of the token that was booked; it may complete a chunk."""
    append(running, token, self.chunk)

  @of_sequence
  def retract(self, running: Running) -> None:
    """Takes the last token back: it was booked, and discarded when it was read.

    Its running slot is overwritten by then: it can only be closed.

    Raises:
      ValueError: If nothing was decoded, or the chunk that the token completed
        is canonical; nothing has changed then.
    """
    retract(self.index, running, self.chunk)

  @of_sequence
  def fork(self, running: Running) -> tuple[Running, Copies]:
    """A second sequence with the same past, to be continued differently.

    Whole chunks become shared; what it claims the twin claims too.

    Returns:
      The twin, and what to copy for it before anything is written.

    Raises:
      CapacityError: If there is no room; nothing has changed then.
    """
    partial = len(running.pages) - running.length // self.chunk
    twin = fork(self.index, running, next(SEQUENCE_NUMBERS), self.chunk)
    self._running[twin.number] = twin
    return twin, copies_of(running, twin, partial)

  @entirely
  def await_state(self, running: Running, position: int) -> bool:
    """A sequence captures one more state of its prompt: somebody waits for it.

    Args:
      running: The sequence.
      position: A lattice point of its prompt.

    Returns:
      Whether it will; not where it has passed the point, where it is in the
      host, or where there is no room.
    """
    if not self.stores or running.number not in self._running:
      return False
    return await_state(self.index, running, position)

  def private_parts(self, running: Running) -> Lease:
    """What to copy of a sequence to the host, or back from it; a look."""
    return private_parts(running, self.chunk)

  @of_sequence
  def swap_out(self, running: Running) -> None:
    """Frees what a sequence leases; its parts were copied to the host.

    It keeps its pin, captures nothing more, and can only be swapped in, closed
    or dropped.
    """
    leave(self.index, running)
    self._swapped[running.number] = self._running.pop(running.number)

  @of_sequence
  def swap_in(self, running: Running) -> None:
    """Leases slots and pages for a sequence in the host, to copy its parts to.

    Raises:
      CapacityError: If there is no room; nothing has changed then.
    """
    come_back(self.index, running)
    self._running[running.number] = self._swapped.pop(running.number)

  @of_sequence
  def close(self, running: Running, keep: int | None = None) -> None:
    """Ends a sequence: stores what is canonical of it and frees the rest.

    Its prompt keeps what it was given. If anything was decoded, the state at
    the last lattice point joins, where the sequence holds it, and those that
    its prompt captured go on probation: whoever goes on resumes from the new
    one. A token whose id was not read, or whose chunk is not canonical yet, is
    taken back; of a sequence in the host only its prompt is stored.

    Args:
      running: The sequence; it is gone then.
      keep: Tokens from the start to store, floored to the lattice for pages and
        states; None for all. What this sequence alone claims beyond it goes.

    Raises:
      ValueError: If `keep` is negative or more than its tokens.
    """
    kept = running.kept_tokens(keep)
    if running.number in self._swapped:
      kept = min(kept, max(running.prompt_length, running.stored * self.chunk))
    elif running.unread or running.completed(self.chunk):
      retract(self.index, running, self.chunk)
      kept = min(kept, running.length)
    try:
      if self.stores:
        store_past(self.index, running, kept, self.chunk)
    finally:
      self.drop(running)
    self._window.ended(running)
    self._admission.expectations.note(running)
    if self.chooser and running.decoded:
      self.chooser.follow(running)
      self.chooser.catch_up()

  @entirely
  def drop(self, running: Running, why: str = "") -> None:
    """Frees what a sequence owns and unpins the rest; stores nothing more.

    Args:
      running: The sequence.
      why: What its handle says from here on, if it was not asked for.
    """
    number = running.number
    if not (self._running.pop(number, 0) or self._swapped.pop(number, 0)):
      return  # The store has started over since.
    if why:
      self._ended.note(running, why)
    self.index.free(running.leased_slots(), running.leased_pages())
    self.index.unpin(running.pin)
    self.index.withdraw(running.number)

  @entirely
  def flush(self) -> None:
    """Forgets everything that no running sequence holds."""
    self.index.clear()
    self._window.clear()
    if self.chooser:
      self.chooser.flush()

  @entirely
  def reset(self, why: str) -> None:
    """Starts empty, running sequences included.

    Args:
      why: What their handles say from here on.
    """
    for running in (*self.running, *self.swapped):
      self.drop(running, why)
    self.flush()

  def start_over(self, why: str) -> None:
    """Starts empty with a new index and rule, running sequences included.

    Args:
      why: What their handles say from here on.
    """
    self.planner.renew_worth()
    planner, budget = self.planner, self.index.budget
    index = index_for(budget, planner, self._eviction, self.chunk)
    self._admission = Admission(
      index, planner, chunk=self.chunk, stores=self.stores
    )
    self._window.clear()
    self.index, ended = index, (*self.running, *self.swapped)
    self._running, self._swapped = {}, {}
    for running in ended:
      self._ended.note(running, why)

  @entirely
  def begin_resize(
    self, slots: int, pages: int, *, spare: tuple[int, int] = (0, 0)
  ) -> Renumbering:
    """Makes room for pools of another size, evicting where one is smaller.

    Args:
      slots: That there will be.
      pages: That there will be.
      spare: Slots and pages that must be left beside what runs.

    Returns:
      What has to be copied within the pools, before either is made smaller.

    Raises:
      CapacityError: If running sequences hold more; nothing has changed.
    """
    return resizing.make_room(self.index, slots, pages, spare)

  def renumber(self, moved: Renumbering) -> None:
    """What `begin_resize` named has been copied: it has new numbers now."""
    resizing.number_anew(self.index, (*self.running, *self.swapped), moved)

  @entirely
  def end_resize(self, slots: int, pages: int) -> None:
    """The pools have their new size."""
    resizing.set_size(self.index, slots, pages)

  def spare(self, slots: int, pages: int) -> AbstractContextManager[Lease]:
    """Lends free slots and pages to try something in.

    Raises:
      CapacityError: If running sequences leave no room for them.
    """
    return resizing.lent(self.index, slots, pages)
