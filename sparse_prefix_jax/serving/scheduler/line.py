"""Who runs, who waits, and who makes room: one line, by priority and arrival.

The first in the line is served whatever happens to the others, so there is
always progress.
"""

import bisect
import collections
from collections.abc import Callable, Sequence

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.runtime.host_copies import copy_back, copy_to_host
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.sampler import Sampler


class Line:
  """The requests of a scheduler.

  Attributes:
    running: Requests whose sequences are in the pools, the first ones first.
    waiting: The others, in the same order: new, swapped out, or dropped.
    counts: How often something happened.

  Args:
    cache: Where they run.
    sampler: Is told who sits where.
    seats: How many may run at once.
    swap_bytes: Most bytes of the host for sequences that are swapped out.
    fail: What ends a request with an exception of its own.
  """

  def __init__(
    self,
    cache: PrefixCache,
    sampler: Sampler,
    *,
    seats: int,
    swap_bytes: int,
    fail: Callable[[Life, Exception], None],
  ) -> None:
    """Nobody has come yet."""
    self._cache, self._store, self._sampler = cache, cache.store, sampler
    cache.promises.add(self)
    self._replaced = cache.replaced
    self._swap_bytes, self._fail = swap_bytes, fail
    self._seats, self._most = list(range(seats)), seats
    self.running: list[Life] = []
    self.waiting: list[Life] = []
    self.counts: collections.Counter[str] = collections.Counter()

  @property
  def active(self) -> bool:
    """Whether a request runs that is not over."""
    return any(not life.over for life in self.running)

  def most_pages(self) -> int:
    """Pages that the longest request needs at its end, alone."""
    lives = [x for x in (*self.running, *self.waiting) if not x.over]
    return max((x.most_pages(self._store.chunk) for x in lives), default=0)

  def enter(self, life: Life) -> None:
    """A request waits, behind those that come before it."""
    bisect.insort(self.waiting, life, key=lambda one: one.order)

  def leave(self, life: Life) -> None:
    """A request is over; what becomes of its sequence is not decided here."""
    if life in self.waiting:
      self.waiting.remove(life)
    if life in self.running:
      self._stand_up(life)

  def admit(self, passed: set[Life]) -> Life | None:
    """Begins those who wait, in order, until there is no room for the next.

    Args:
      passed: Gets those who wait for a prefix that another one computes; they
        let others pass.

    Returns:
      The first one that there is no room for; None if there is none.
    """
    for life in self.waiting[: self._most]:
      if not (self._seats or self.below(life)):
        return None
      if self._waits_for_another(life):
        passed.add(life)
      elif not (self._seats and self._begin(life)):
        return life
    return None

  def _waits_for_another(self, life: Life) -> bool:
    """Whether somebody before it computes more of its prefix than is stored.

    The point that they share is captured then, if there is a slot for it.
    """
    store, stored = self._store, None
    if life.parked is not None or not store.stores:
      return False
    for other in self.running:
      one = other.sequence
      if one.prefilled or other.over or other.order > life.order:
        continue
      shared = life.opening.shared_chunks(one.request, store.chunk)
      if shared * store.chunk <= one.computed:
        continue
      if stored is None:
        stored = store.match(life.opening).resume_blocks
      if shared > stored and store.await_state(one, shared * store.chunk):
        return True
    return False

  def _begin(self, life: Life) -> bool:
    """Begins or goes on with a request; not where it has to wait for room."""
    while True:
      try:
        self._take_seat(life)
        return True
      except CapacityError as error:
        if self._store.running:  # Ours or not: there may be room later.
          return False
        if not self.drop_swapped():
          self._fail(life, error)
          return True
      except Exception as error:  # of a placement or a sampler, for example
        self._fail(life, error)
        return True

  def _take_seat(self, life: Life) -> None:
    """Opens its sequence, or swaps it in, and lets it run."""
    if life.parked is None:
      (life.running,) = self._store.open([life.opening])
    else:
      self._swap_in(life)
    try:
      self._sit_down(life)
    except BaseException:
      self._store.drop(life.sequence)
      life.running = None
      raise
    self.waiting.remove(life)

  def _sit_down(self, life: Life) -> None:
    """Gives it a seat, of which the sampler hears."""
    seat, ids = self._seats[0], life.ids.ids
    prompt, answer = ids[: life.prompt], ids[life.prompt :]
    self._sampler.begin(seat, life.asked.sampling, prompt, answer)
    life.seat = self._seats.pop(0)
    bisect.insort(self.running, life, key=lambda one: one.order)

  def fork(self, life: Life, twin: Life) -> None:
    """A request goes on twice, the second time as the twin.

    Where there is no room for a copy, or nothing to copy yet, the twin waits,
    and is replayed.

    Args:
      life: Nothing of it is unread.
      twin: With its ids.
    """
    chunk = self._store.chunk
    if life in self.running and self._seats and self._copy(life.sequence, twin):
      return
    twin.opening = life.replay(chunk) if life.answered else life.opening
    self.enter(twin)

  def _copy(self, one: Running, twin: Life) -> bool:
    """Lets a twin run beside its source, if it can be copied and has room."""
    if not one.prefilled or one.completed(self._store.chunk):
      return False
    try:
      handle = self._cache.fork(one.handle)
    except CapacityError:
      return False
    twin.running = self._store.find(handle)
    self.counts["forked"] += 1
    try:
      self._sit_down(twin)
    except BaseException:
      self._store.drop(twin.sequence)
      raise
    return True

  def _swap_in(self, life: Life) -> None:
    """Copies what is in the host back into the pools.

    A page for each of those who run is left: they would send it away again.
    """
    cache, store = self._cache, self._store
    with store.spare(0, len(self.running) and len(self.running) + 1):
      store.swap_in(life.sequence)
    copy, life.parked = life.parked, None
    assert copy is not None
    parts = store.private_parts(life.sequence)
    try:
      for pools in copy_back(cache.pools, copy, parts.slots, parts.pages):
        cache.pools = pools
    except BaseException:
      store.drop(life.sequence)
      life.running, life.opening = None, life.replay(store.chunk)
      raise

  def below(self, life: Life) -> list[Life]:
    """Who holds something at a lower priority than a waiting one.

    Returns:
      Those in the host, then those that run; the first to make way last.
    """
    parked = [one for one in self.waiting if one.parked is not None]
    holding = [*parked, *self.running] if self._seats else self.running
    return [x for x in holding if x.asked.priority < life.asked.priority]

  def fits_without(self, below: Sequence[Life], life: Life) -> bool:
    """Whether a waiting request could have room if others held nothing.

    Args:
      below: The others.
      life: The waiting request.
    """
    store, gone = (
      self._store,
      {x.running.number for x in (*below, life) if x.running},
    )
    stay = [x for x in (*store.running, *store.swapped) if x.number not in gone]
    slots = {slot for one in stay for slot in one.held_slots()}
    pages = {page for one in stay for page in one.held_pages()}
    if life.running is None:
      own = -(-life.opening.length // store.chunk)
      shared = store.match(life.opening).pages
    else:
      own, shared = len(life.running.pages), life.running.held_pages()
    new = own - len(pages.intersection(shared))
    return store.index.budget.fits(len(slots) + 2, len(pages) + new)

  def make_room(self) -> bool:
    """Takes what the last one holds, over or not, or in the host.

    Returns:
      Whether there was one; who runs alone is left alone.
    """
    over = [life for life in self.running if life.over]
    if over:
      self.let_go(over[-1])
    elif len(self.running) > 1:
      self.set_aside(self.running[-1])
    else:
      return self.drop_swapped()
    return True

  def make_way(self, life: Life) -> None:
    """Takes what one of `below` holds.

    Args:
      life: Nothing of it is unread.
    """
    self.counts["preempted"] += life in self.running
    if life.over:
      self.let_go(life)
    elif life in self.running:
      self.set_aside(life)
    else:
      self._drop(life)

  def let_go(self, life: Life) -> None:
    """Stores the prompt of one that is over, as far as it is computed."""
    self.leave(life)
    if life.running is not None:
      self._store.close(life.running, min(life.prompt, life.running.length))
    life.running = life.parked = None

  def set_aside(self, life: Life) -> None:
    """Makes room: swaps a running request out, or drops it.

    Args:
      life: Nothing of it is unread.
    """
    store = self._store
    parts = store.private_parts(life.sequence)
    if self._parked_bytes(life) <= self._swap_bytes:
      life.parked = copy_to_host(self._cache.pools, parts.slots, parts.pages)
      store.swap_out(life.sequence)
      self.counts["swapped_out"] += 1
    else:
      self._drop(life)
    self._stand_up(life)
    self.enter(life)

  def _parked_bytes(self, also: Life) -> int:
    """Bytes in the host if one more request is swapped out."""
    lives = [life for life in self.waiting if life.parked is not None]
    parts = [self._store.private_parts(x.sequence) for x in (*lives, also)]
    bytes_of = self._store.index.budget.bytes_of
    return sum(bytes_of(len(part.slots), len(part.pages)) for part in parts)

  def drop_swapped(self) -> bool:
    """Gives up what the last of those in the host pins, if there is one."""
    for life in reversed(self.waiting):
      if life.parked is not None:
        self._drop(life)
        return True
    return False

  def _drop(self, life: Life) -> None:
    """Ends the sequence of a request that will be replayed.

    What its prompt was given stays; of its answer nothing is stored yet.
    """
    kept = min(life.prompt, life.sequence.length)
    self._store.close(life.sequence, kept)
    life.running = life.parked = None
    life.opening = life.replay(self._store.chunk)
    self.counts["dropped"] += 1

  def _stand_up(self, life: Life) -> None:
    """Frees its seat."""
    self.running.remove(life)
    bisect.insort(self._seats, life.seat)

  def forget_lost(self) -> list[Life]:
    """Who of the running has no sequence any more, after a failure for example.

    Those in the host whose pins are gone are replayed, unless the weights that
    they began with were replaced.

    Returns:
      Whose answers cannot go on; they have left the line.
    """
    alive = {one.number for one in (*self._store.running, *self._store.swapped)}
    for life in self.waiting:
      if life.running is not None and life.running.number not in alive:
        life.running = life.parked = None
        life.opening = life.replay(self._store.chunk)
    lost = [x for x in self.running if x.sequence.number not in alive]
    if self._cache.replaced != self._replaced:
      self._replaced = self._cache.replaced
      lost += [life for life in self.waiting if life.started or life.answered]
    for life in lost:
      self.leave(life)
    return lost

  def fail_all(self, error: Exception) -> None:
    """Ends all whose answers are not complete, each with the same exception.

    Args:
      error: Why nothing can be computed.
    """
    for life in (*self.running, *self.waiting):
      if not life.over:
        self._fail(life, error)

  def why_lost(self, life: Life) -> Exception:
    """What to say of a request whose sequence a failure or a caller ended.

    Args:
      life: Of `forget_lost`.
    """
    if life.running is None:
      return RuntimeError(
        "the request had begun when the weights of its cache were replaced; "
        "ask again."
      )
    why = self._store.why_ended(life.sequence.handle)
    return RuntimeError(f"the sequence of the request {why}.")
