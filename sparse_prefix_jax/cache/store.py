"""PrefixStore: the one owner of a request's life. Integers, no arrays.

    match -> open -> (next_segment -> commit)* -> (advance -> append)* -> close

What is stored, where new states go and what a running sequence holds change in
these verbs and nowhere else, and each happens entirely or not at all. The
prefix cache is this store with the pools of a model; a simulation is this store
alone.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence

from sparse_prefix_jax.cache.admission import SEQUENCE_NUMBERS
from sparse_prefix_jax.cache.canonical import (
  commit_decoded,
  commit_prompt,
  grow,
  renumber,
  store_past,
)
from sparse_prefix_jax.cache.index import (
  Lease,
  Renumbering,
  token_blocks,
)
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import (
  Copies,
  Running,
  copies_of,
  twin_of,
)
from sparse_prefix_jax.cache.segments import next_segment
from sparse_prefix_jax.cache.store_view import StoreView
from sparse_prefix_jax.cache.verbs import entirely
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
  def open(
    self,
    requests: Sequence[Request],
    also: Sequence[Collection[int]] | None = None,
  ) -> list[Running]:
    """Begins a wave of requests as one act.

    All matches are pinned before anything is evicted. Where pins are in the way
    the wave gives its matches up and starts cold (`no_room`). Overlaps are
    observed in order, then all requests are placed, and slots for the states
    to capture are leased as far as there is room.

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
    shared = also if also is not None else [()] * len(requests)
    opened = self._admission.begin(requests, shared)
    self._running |= {running.number: running for running in opened}
    try:
      for running in opened:
        if self.chooser:
          self.chooser.follow(running)
        self.index.use(running.match)
    except BaseException:
      for running in opened:
        self.drop(running)
      raise
    for running in opened:
      self.counts.open(running)
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

  @entirely
  def commit(self, running: Running, segment: Segment) -> None:
    """The program of a segment was dispatched.

    Whole chunks of the prompt become nodes that the sequence's pin holds, with
    the states captured in them; after its last token the prompt is remembered.
    A chunk that decoding completed stays the sequence's own until it is closed.
    """
    if running.computed >= running.prompt_length:
      commit_decoded(running, segment, self.chunk)
      return
    commit_prompt(self.index, running, segment, self.chunk, stores=self.stores)
    if running.computed == running.prompt_length:
      self._window.prompt(running)

  @entirely
  def catch_up(self) -> None:
    """Learns what the next prompt would wait for: a program is under way."""
    if self.chooser:
      self.chooser.catch_up()
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
      ValueError: If a sequence has decoded in the other form.
      CapacityError: If there is no page for a new chunk. Nothing has changed.
    """
    for running in sequences:
      running.check_form(exact)
    begin = [r for r in sequences if r.length % self.chunk == 0]
    pages = self.index.reserve(0, len(begin)).pages
    for running, page in zip(begin, pages):
      running.pages.append(page)
    for running in sequences:
      running.length += 1
      running.exact = exact

  def append(self, running: Running, token: int) -> None:
    """Notes the id of the token that was booked; it may complete a chunk."""
    running.tokens.append(token)
    if running.length % self.chunk == 0:
      last = running.tokens.ids[running.length - self.chunk : running.length]
      running.blocks += token_blocks(last, self.chunk)[0]

  @entirely
  def fork(self, running: Running) -> tuple[Running, Copies]:
    """A second sequence with the same past, to be continued differently.

    Whole chunks become shared; what it claims the twin claims too.

    Returns:
      The twin, and what to copy for it before anything is written.

    Raises:
      CapacityError: If there is no room; nothing has changed then.
    """
    depth = running.length // self.chunk
    partial = len(running.pages) - depth
    lease, pin = self.index.reserve(2, partial), None
    try:
      grow(self.index, running, depth, self.chunk)
      self.index.raise_failure()
      pin = self.index.pin(running.pin.node, salt=running.request.salt)
      claims = self.index.claim(pin, running.claims)
      if running.entry:
        self.index.share(running.entry)
    except BaseException:
      self.index.free(lease.slots, lease.pages)
      if pin:
        self.index.unpin(pin)
      raise
    twin = twin_of(running, next(SEQUENCE_NUMBERS), lease, pin, claims)
    self._running[twin.number] = twin
    return twin, copies_of(running, twin, partial)

  @entirely
  def close(self, running: Running, keep: int | None = None) -> None:
    """Ends a sequence: stores what is canonical of it and frees the rest.

    Its prompt keeps what it was given. If anything was decoded, the state at
    the last lattice point joins, where the sequence holds it, and those that
    its prompt captured go on probation: whoever goes on resumes from the new
    one.

    Args:
      running: The sequence; it is gone then.
      keep: Tokens from the start to store, floored to the lattice for pages and
        states; None for all. What this sequence alone claims beyond it goes.

    Raises:
      ValueError: If `keep` is negative or more than its tokens.
    """
    kept = running.kept_tokens(keep)
    try:
      if self.stores and running.computed >= running.prompt_length:
        store_past(self.index, running, kept, self.chunk)
    finally:
      self.drop(running)
    self._window.ended(running)
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
    if self._running.pop(running.number, None) is None:
      return  # The store has started over since.
    if why:
      self._ended.note(running, why)
    self.index.free(running.leased_slots(), running.leased_pages())
    self.index.unpin(running.pin)
    self.index.withdraw(running.number)

  @contextlib.contextmanager
  def spare(self, slots: int, pages: int) -> Iterator[Lease]:
    """Lends free slots and pages to try something in.

    Raises:
      CapacityError: If running sequences leave no room for them.
    """
    lease = self.index.reserve(slots, pages)
    try:
      yield lease
    finally:
      self.index.free(lease.slots, lease.pages)

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
    now = self.index.budget
    fewer = min(slots, now.slots or slots), min(pages, now.pages or pages)
    low = dataclasses.replace(now, slots=fewer[0], pages=fewer[1])
    self.index.check_room(*spare, low)
    self.index.set_budget(low)
    return self.index.renumbering(low.slots or 0, low.pages or 0)

  def renumber(self, moved: Renumbering) -> None:
    """What `begin_resize` named has been copied: it has new numbers now."""
    low = self.index.budget
    self.index.renumber(moved, low.slots or 0, low.pages or 0)
    for running in self.running:
      renumber(running, moved)

  @entirely
  def end_resize(self, slots: int, pages: int) -> None:
    """The pools have their new size."""
    budget = self.index.budget
    self.index.set_budget(dataclasses.replace(budget, slots=slots, pages=pages))

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
    for running in self.running:
      self.drop(running, why)
    self.flush()
