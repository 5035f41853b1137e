"""Plans computed beside the requests, to take effect later: `UnderWay`.

A plan must not keep a request waiting, and which plan a request is placed by
must not depend on how fast a machine is. So a plan is computed by a thread, and
takes effect after a fixed number of observations, waited for if it is late.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar

_Plan = TypeVar("_Plan")

PlanWork: TypeAlias = Callable[[], _Plan]
"""Computes a plan from what it holds, which nobody else changes."""

# Seconds that a plan goes on for, and then sleeps to hand the interpreter over.
# Python itself would let a request wait for 5 milliseconds.
_STRETCH, _SLEEP = 2e-4, 1e-4


class _ThisThread(threading.local):
  """What a thread is doing: the job that it computes, and since when."""

  job: "Job[Any] | None" = None
  since: float = 0.0


_this_thread = _ThisThread()


@cache
def _worker() -> ThreadPoolExecutor:
  """The one thread that computes plans, of all planners; begun when needed."""
  return ThreadPoolExecutor(1, thread_name_prefix="sparse_prefix_jax_plans")


def _submitted(work: PlanWork[_Plan]) -> Future[_Plan] | None:
  """The plan to come; None where no thread can be had for it."""
  try:
    return _worker().submit(work)
  except RuntimeError:
    # The main thread has ended, and a server goes on in another one.
    return None


def pause() -> None:
  """Lets requests go on, if this thread computes a plan beside them.

  Whoever computes a plan in Python calls it several times per millisecond. It
  does nothing in any other thread, nor for a plan that is waited for.

  >>> pause()
  """
  job = _this_thread.job
  if job is None or job.waited_for:
    return
  if time.perf_counter() - _this_thread.since > _STRETCH:
    time.sleep(_SLEEP)
    _this_thread.since = time.perf_counter()


class Job(Generic[_Plan]):
  """A plan that is being computed.

  Attributes:
    due: The number of observations from which on it is in effect.
    waited_for: Whether somebody waits for it.
  """

  def __init__(
    self, work: PlanWork[_Plan], *, due: int, background: bool
  ) -> None:
    """Begins to compute, or leaves it for `result`.

    Args:
      work: Computes the plan from what it holds, which nobody else changes.
      due: As in the attributes.
      background: Begin at once, in a thread beside the caller.
    """
    self.due, self.waited_for = due, False
    self._work = work
    self._future = _submitted(self._beside) if background else None

  def _beside(self) -> _Plan:
    """Computes the plan in the thread of plans."""
    _this_thread.job = self
    try:
      return self._work()
    finally:
      _this_thread.job = None

  def result(self) -> _Plan:
    """Returns the plan, waiting for it, or raises what the work raised.

    May be called again, also after it was interrupted.

    >>> Job(lambda: 3, due=0, background=True).result()
    3
    """
    # What has not begun is computed here, rather than behind other planners'.
    if self._future is None or self._future.cancel():
      return self._work()
    self.waited_for = True
    return self._future.result()

  def drop(self) -> None:
    """Does not compute the plan, unless that has begun."""
    if self._future is not None:
      self._future.cancel()


class UnderWay(Generic[_Plan]):
  """The plans of one planner that are to be made and are not in effect yet.

  A thread that wakes up asks for the interpreter. So the request that has a
  plan made is placed first, and the plan begins then: see `go`.
  """

  def __init__(self, *, background: bool) -> None:
    """Starts without plans.

    Args:
      background: Compute in a thread beside the caller, instead of in the call
        that needs the plan. The plans are the same.
    """
    self._background = background
    self._jobs: list[Job[_Plan]] = []
    self._next: tuple[PlanWork[_Plan], int] | None = None

  def __len__(self) -> int:
    """How many plans are under way."""
    return len(self._jobs) + (self._next is not None)

  def start(self) -> None:
    """Starts the thread of plans, which takes longer than to begin a plan."""
    if self._background:
      _submitted(int)

  def begin(self, work: PlanWork[_Plan], *, due: int) -> None:
    """Has a plan made, which begins with `go`.

    Args:
      work: Computes it from what it holds, which nobody else changes.
      due: The number of observations from which on it is in effect; more than
        that of any plan before it.
    """
    self.go()
    self._next = work, due

  def go(self) -> None:
    """Begins what is to be made: nobody waits for a placement now."""
    if self._next is not None:
      (work, due), self._next = self._next, None
      self._jobs.append(Job(work, due=due, background=self._background))

  def take(self, now: int, adopt: Callable[[_Plan], None]) -> None:
    """Adopts the newest plan that is due, waiting for it if it is late.

    An exception of its computation is raised here, once. An interrupted call
    leaves everything as it was, and the next one waits again.

    Args:
      now: The number of observations so far.
      adopt: Puts a plan into effect; twice is as good as once.

    >>> plans = UnderWay(background=True)
    >>> plans.begin(lambda: "first", due=10)
    >>> plans.take(9, print)
    >>> plans.take(10, print)
    first
    """
    if self._next is not None and self._next[1] <= now:
      self.go()
    due = [job for job in self._jobs if job.due <= now]
    if not due:
      return
    try:
      adopt(due[-1].result())
    except Exception:
      self._drop(due)
      raise
    self._drop(due)

  def drop(self) -> None:
    """Gives up all plans that are under way."""
    self._next = None
    self._drop(self._jobs)

  def _drop(self, jobs: list[Job[_Plan]]) -> None:
    """Gives up some."""
    for job in jobs:
      job.drop()
    self._jobs = [job for job in self._jobs if job not in jobs]
