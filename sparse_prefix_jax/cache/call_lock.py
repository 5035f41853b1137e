"""One call at a time, and no interruption between its halves.

A call on a cache changes host objects and device arrays that must agree. So the
cache is locked for the length of a call, and signals with a Python handler (a
KeyboardInterrupt is one of SIGINT's) are noted while it is held and delivered
at one kind of place: between programs, where host and device agree.

A call moves small arrays between host and device as it goes. Who forbids that
in his own code (`jax.transfer_guard("disallow")`) does not mean these.
"""

import collections
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_NUMBERS = tuple(int(number) for number in signal.valid_signals())
# The C function: its wrapper makes an enumeration member of every answer, which
# for all signals takes longer than a small model needs for a token.
_handler_of = getattr(signal.getsignal, "__wrapped__", signal.getsignal)


class HeldSignals:
  """Notes signals while it is held; a stale note-taker passes them through.

  Only the main thread runs Python's signal handlers, so elsewhere there is
  nothing to hold. Holds may be nested; the outermost one counts.
  """

  def __init__(self) -> None:
    """Holds nothing."""
    self._depth = 0
    self._noted: dict[int, FrameType | None] = {}
    self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

  @contextlib.contextmanager
  def hold(self) -> Iterator[None]:
    """Notes signals until it is left, and then delivers them.

    What is noted is delivered after everything has been put back, so a handler
    that raises leaves nothing half done.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    if self._depth == 0:
      self._install()
    self._depth += 1
    try:
      yield
    finally:
      self._depth -= 1
      if self._depth == 0:
        self._restore()
        self.deliver()

  def deliver(self) -> None:
    """Runs the handlers of what was noted; here a handler may raise."""
    if threading.current_thread() is not threading.main_thread():
      return
    if self._noted:
      number, frame = self._noted.popitem()
      try:
        self._handlers[number](number, frame)
      finally:
        self.deliver()  # the others, too

  def _install(self) -> None:
    """Puts note-takers where Python has handlers."""
    for number in _NUMBERS:
      handler = _handler_of(number)
      if callable(handler) and handler != self._note:
        self._handlers[number] = handler
        signal.signal(number, self._note)

  def _restore(self) -> None:
    """Puts the handlers back, unless somebody has set others since."""
    for number, handler in self._handlers.items():
      if signal.getsignal(number) == self._note:
        signal.signal(number, handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    """A handler while held; after a restore that was cut short, a passage."""
    if self._depth:
      self._noted[number] = frame
    else:
      self._handlers[number](number, frame)


class CallLock:
  """A re-entrant lock for the length of a call, with signals held.

  >>> lock = CallLock()
  >>> with lock.held():
  ...   lock.deliver()  # between programs
  """

  def __init__(self) -> None:
    """Nobody holds it."""
    self._lock = threading.RLock()
    self._signals = HeldSignals()
    self._owner, self._depth = 0, 0
    self._later = collections.deque[Callable[[], None]]()

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """One call: waits for its turn, which a signal may interrupt."""
    with self._signals.hold():
      while not self._lock.acquire(timeout=_POLL_SECONDS):
        self._signals.deliver()
      self._owner, self._depth = threading.get_ident(), self._depth + 1
      try:
        with (
          jax.transfer_guard_host_to_device("allow"),
          jax.transfer_guard_device_to_host("allow"),
        ):
          yield
      finally:
        self._leave()

  def _leave(self) -> None:
    """Gives the lock back; the outermost call does first what was put off."""
    try:
      while self._depth == 1 and self._later:
        self._do_later(self._later.popleft())
    finally:  # A signal may end what was put off.
      self._depth -= 1
      if not self._depth:
        self._owner = 0
      self._lock.release()

  def _do_later(self, action: Callable[[], None]) -> None:
    """Runs what was put off; its errors are not those of this call."""
    try:
      action()
    except Exception:
      _LOG.exception("what was put off to the end of a call failed")

  def when_free(self, action: Callable[[], None]) -> None:
    """Runs an action now, or at the end of the call that this thread is amid.

    What Python finds unreachable it may finalise anywhere, between the halves
    of a call too, and the lock would let it in.

    Args:
      action: A call of its own.
    """
    if self._owner == threading.get_ident():
      self._later.append(action)
    else:
      action()

  def deliver(self) -> None:
    """Runs the handlers of signals that came meanwhile; they may raise."""
    self._signals.deliver()
