"""A step: who runs, what is computed, what is read; `run` is the whole idea.

Programs are dispatched and never waited for, but for the ids of the last one.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.runtime.row_sampler import Sampled
from sparse_prefix_jax.runtime.segment import Segment
from sparse_prefix_jax.serving.scheduler import work
from sparse_prefix_jax.serving.scheduler.dispatcher import Chosen, Dispatcher
from sparse_prefix_jax.serving.scheduler.events import (
  Ending,
  Event,
  Finished,
  Started,
  token_event,
)
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.line import Line
from sparse_prefix_jax.serving.scheduler.sampler import Sampler
from sparse_prefix_jax.serving.scheduler.watched_model import WatchedModel


class Stepper:
  """The steps of a scheduler, one after another.

  Attributes:
    line: Who runs and who waits.
    lives: All requests that are not finished, by number.
    events: What happened and was not told yet.
    mine: Of the call of the cache that goes on: the sequences that an exception
      would end.
    made: The requests of this call, whose handles nobody has yet.
    number: How many steps were begun.

  Args:
    watched: The model of the cache.
    cache: Where requests run.
    sampler: Chooses ids.
    seats: Most requests that run at once.
    chunks: Most chunks of prompts per step.
    swap_bytes: Most bytes of the host for those that make room.
    overlap: Whether a step is dispatched before the last ids are read.
  """

  def __init__(
    self,
    watched: WatchedModel,
    cache: PrefixCache,
    sampler: Sampler,
    *,
    seats: int,
    chunks: int,
    swap_bytes: int,
    overlap: bool,
  ) -> None:
    """No step yet; see the class."""
    self._watched, self._cache, self._store = watched, cache, cache.store
    self._chunk, self._budget = cache.store.chunk, chunks
    self._ahead, self._sampler = int(overlap), sampler
    self._dispatcher = Dispatcher(cache, sampler, seats)
    self.line = Line(
      cache, sampler, seats=seats, swap_bytes=swap_bytes, fail=self._fail
    )
    self._unread = collections.deque[list[Chosen]]()
    self._ending: list[tuple[Life, Ending]] = []
    self.lives: dict[int, Life] = {}
    self.mine: list[Running] = []
    self.made: list[Life] = []
    self.events: list[Event] = []
    self.number = 0

  def run(self) -> None:
    """One step; everything that it changes happens here, in this order."""
    self.number += 1
    if error := self._watched.refusal():
      self.line.fail_all(error)
      self._read(0)  # All of it is discarded.
      return
    self._cache.move_if_due()
    self._read(self._ahead)  # What is left if the last step failed.
    self._expire()
    self.forget_lost()  # Where a rule of eviction has failed for good.
    self._admit()
    self.forget_lost()  # Others may have their slots: they compute nothing.
    chosen: list[Chosen] = []
    self._unread.append(chosen)
    ready = work.ready(self.line)
    judged = len(work.wanting(self.line)) - len(ready)
    self.line.counts["sat_out_judged"] += judged
    self._prefill(chosen)
    self._decode(ready, chosen)
    self._store.catch_up()  # The device computes meanwhile.
    self._read(self._ahead)
    if not self.busy:
      self._read(0)  # All of it is discarded.

  def warm_up(self, samplings: Sequence[object]) -> Iterator[str]:
    """Compiles what steps run; nobody has a seat yet."""
    return self._dispatcher.warm_up(samplings)

  @property
  def busy(self) -> bool:
    """Whether a request is not over."""
    return any(not life.over for life in self.lives.values())

  @contextlib.contextmanager
  def _at_risk(self, lives: Sequence[Life]) -> Iterator[None]:
    """What raises in it ends these requests."""
    self.mine += [life.sequence for life in lives]
    yield
    self.mine.clear()  # In no `finally`: the call ends those who are left.

  def told(self) -> tuple[Event, ...]:
    """What happened since it was asked last."""
    events, self.events = self.events, []
    return tuple(events)

  def forget_lost(self) -> None:
    """Finishes whoever has lost its sequence, to a failure or a release."""
    for life in self.line.forget_lost():
      self._finish(life, Ending.FAILED, self.line.why_lost(life))

  def undo(self) -> None:
    """The call was interrupted: nobody holds the requests that it made."""
    while self.made:
      life = self.made.pop()
      if life.running is not None:
        self._store.drop(life.running)
      self.line.leave(life)
      self.lives.pop(life.handle.number, None)
      self.events = [e for e in self.events if e.handle is not life.handle]

  def enter(self, life: Life) -> None:
    """A request waits for its first step."""
    self.made.append(life)
    self.lives[life.handle.number] = life
    self.line.enter(life)

  def fork(self, life: Life, twin: Callable[[], Life]) -> Life | None:
    """A request goes on twice.

    Args:
      life: The request; its unread ids are read first.
      twin: Makes the second one then.

    Returns:
      The twin; None if the request is over, perhaps by what was read.
    """
    self._read(0)
    if life.ended or life.over:
      return None
    other = twin()
    self.made.append(other)
    self.line.fork(life, other)
    self.lives[other.handle.number] = other
    if other.running is not None:
      self._started(other, other.sequence.length)
    return other

  def _expire(self) -> None:
    """Ends those whose last step has passed."""
    for life in [x for x in self.lives.values() if x.is_late(self.number)]:
      if life.asked.held:
        self.over(life, Ending.DEADLINE)
      else:
        self.end(life, Ending.DEADLINE)

  def _admit(self) -> None:
    """Begins those who wait, if there is room for those who run."""
    if work.has_room(self.line, self._store):
      self._begin_waiting()
    else:
      self._make_room()
    for life in self.line.running:
      if not life.started:
        self._started(life, life.sequence.resumed)

  def _begin_waiting(self) -> None:
    """Begins those who wait, in the room that others hold if need be."""
    passed: set[Life] = set()
    while True:
      with self._store.spare(0, work.begun_pages(self.line, self._chunk)):
        blocked = self.line.admit(passed)
      if blocked is None or not self._preempt(blocked):
        break
      # What was read lets others go on.
      if not work.has_room(self.line, self._store):
        self._make_room()
        break
    while self.line.waiting and self.line.running and not self.line.active:
      # Those that are over hold what the others wait for.
      self.line.let_go(self.line.running[-1])
      self.line.admit(passed)
    self.line.counts["waited_for_a_prefix"] += len(passed)

  def _preempt(self, blocked: Life) -> bool:
    """Lets one of lower priority make way, if that can help one who waits."""
    below = self.line.below(blocked)
    if not below or not self.line.fits_without(below, blocked):
      return False
    self._read(0)  # Who has ended by what was read has made way.
    if below == self.line.below(blocked):
      self.line.make_way(below[-1])
    return True

  def _started(self, life: Life, restored: int) -> None:
    """Tells that a request runs."""
    life.started, restored = True, min(restored, life.prompt)
    reason = life.sequence.match.reason
    self.events.append(
      Started(life.handle, restored, life.prompt - restored, reason)
    )

  def _make_room(self) -> None:
    """Sets the last ones aside until the others have room."""
    self._read(0)  # Who is set aside has nothing unread.
    while not work.has_room(self.line, self._store):
      if self.line.make_room():
        continue
      if len(self._store.running) == 1:  # No others hold the cache.
        error = CapacityError("the request has no page for its next token.")
        self._fail(self.line.running[0], error)
      return

  def _prefill(self, chosen: list[Chosen]) -> None:
    """Completed chunks once more, and prompts up to the budget, in one plan."""
    packed = [*work.segments(self.line, self._store, self._budget)]
    if not packed:
      return
    choosing = [
      life if work.ends_prompt(life, segment) else None
      for life, segment in packed
    ]
    segments = [segment for _, segment in packed]
    with self._at_risk([life for life, _ in packed]):
      ids = self._dispatcher.prefill(segments, choosing)
      for life, segment in packed:
        self._store.commit(life.sequence, segment)
      self._note(ids, chosen)

  def _decode(self, ready: Sequence[Life], chosen: list[Chosen]) -> None:
    """One token of all who are ready."""
    rows = self._cache.config.numerics.decode_rows
    for start in range(0, len(ready), rows):
      lives = work.book_tokens(
        self.line, self._store, ready[start : start + rows]
      )
      if lives:
        with self._at_risk(lives):
          self._note(self._dispatcher.decode(lives), chosen)

  def _note(self, ids: Sequence[Chosen], chosen: list[Chosen]) -> None:
    """Ids were chosen, and will be read."""
    for one in ids:
      for life in one.lives:
        life.unread += 1
    chosen += ids

  def _read(self, left: int) -> None:
    """Reads what was chosen, but for the last steps.

    Args:
      left: How many steps' ids are not read.
    """
    while len(self._unread) > left:
      chosen = self._unread[0]
      while chosen:
        self._read_some(chosen.pop(0))
      self._unread.popleft()
    ending, self._ending = self._ending, []
    self._close([x for x in ending if x[0].handle.number in self.lives])

  def _read_some(self, one: Chosen) -> None:
    """Reads some ids; those of who has ended are discarded."""
    alive = [life for life in one.lives if not (life.ended or life.over)]
    self.line.counts["discarded"] += len(one.lives) - len(alive)
    if not alive:
      return
    with self._at_risk(alive):
      drawn = jax.device_get(one.sampled)
      logits = None if one.logits is None else np.asarray(one.logits)
    for i, life in enumerate(one.lives):
      if life in alive:
        row = None
        if logits is not None and life.asked.keep_logits:
          row = logits[i].copy()
        self._take(life, Sampled(*(x[i] for x in drawn)), row)

  def _take(
    self, life: Life, drawn: Sampled, logits: np.ndarray | None
  ) -> None:
    """Tells an id; it may be the last one."""
    told = token_event(life.handle, life.known, drawn, logits)
    self.events.append(told)
    life.unread -= 1
    life.ids.append(told.id)
    if told.id in life.asked.stop_tokens:
      self._answered(life, Ending.STOP)
    elif life.answered == life.asked.max_tokens:
      self._answered(life, Ending.LENGTH)
    else:
      self._goes_on(life, told.id)

  def _goes_on(self, life: Life, token: int) -> None:
    """Notes an id that ends nothing; a grammar that fails now ends its own."""
    try:
      self._sampler.note(life.seat, token)
    except Exception as error:
      self._fail(life, error)
      return
    if life.sequence.unread:  # A step has taken it already.
      self._store.append(life.sequence, token)

  def _answered(self, life: Life, why: Ending) -> None:
    """A request has its last id; once all ids are read, it is closed."""
    if life.asked.held:
      self.over(life, why)
      return
    life.ended = True
    self._ending.append((life, why))

  def over(self, life: Life, why: Ending) -> None:
    """A held request chooses no more, which is told; one that waits is gone."""
    life.over = True
    if life in self.line.waiting:
      self.line.let_go(life)
    self.events.append(Finished(life.handle, why))

  def end(self, life: Life, why: Ending, keep: int | None = None) -> None:
    """Stores what a request leaves and finishes it.

    Args:
      life: The request.
      why: What ended it.
      keep: Tokens from the start to store; None for all.
    """
    self._close([(life, why)], keep)

  def _close(
    self,
    ending: Sequence[tuple[Life, Ending]],
    keep: int | None = None,
  ) -> None:
    """Computes chunks that last ids completed, then stores and finishes."""
    due: list[tuple[Life, Ending, Segment]] = []
    for life, why in ending:
      segment = work.last_chunk(life, self._store, keep)
      if segment is None:
        self._store_and_finish(life, why, keep)
      else:
        due.append((life, why, segment))
    if not due:
      return
    segments = [segment for _, _, segment in due]
    with self._at_risk([life for life, _, _ in due]):
      self._dispatcher.prefill(segments, [None] * len(due))
      for life, _, segment in due:
        self._store.commit(life.sequence, segment)
    for life, why, _ in due:
      self._store_and_finish(life, why, keep)

  def _store_and_finish(
    self, life: Life, why: Ending, keep: int | None
  ) -> None:
    """Closes the sequence of a request; an error is its own."""
    try:
      if life.running is not None:
        kept = None if keep is None else min(keep, life.sequence.length)
        self._store.close(life.sequence, kept)
    except Exception as error:  # of a placement or an eviction, for example
      self._fail(life, error)
    else:
      self._finish(life, why)

  def _fail(self, life: Life, error: Exception) -> None:
    """Finishes a request with an exception of its own."""
    if life.running is not None:
      self._store.drop(life.running)
    self._finish(life, Ending.FAILED, error)

  def _finish(
    self, life: Life, why: Ending, error: Exception | None = None
  ) -> None:
    """Takes a request out of the line; its sequence is gone."""
    self.line.leave(life)
    life.running = life.parked = None
    life.ended = True
    del self.lives[life.handle.number]
    if not life.over:
      self.events.append(Finished(life.handle, why, error))
