"""Commands of other threads to the one that obeys them."""

import asyncio
import concurrent.futures
import logging
import queue
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class ShutDownError(RuntimeError):
  """Nobody obeys any more."""


class _Letter(NamedTuple):
  """A command, and where its result goes."""

  command: Callable[[], Any]
  result: concurrent.futures.Future[Any]


class Inbox:
  """Commands, in the order in which they came.

  What a command raises is for who sent it, and ends nothing else. Every command
  is answered: where nobody obeys any more, by a refusal.

  Example:
    >>> inbox = Inbox()
    >>> inbox.tell(lambda: print("done"))
    >>> inbox.obey(wait=False)
    done
  """

  def __init__(self) -> None:
    """Nobody has come yet."""
    self._letters: queue.SimpleQueue[_Letter] = queue.SimpleQueue()
    self._closed: str | None = None

  async def ask(self, command: Callable[[], _T]) -> _T:
    """Sends a command, and waits for what comes of it.

    Args:
      command: Runs in the thread that obeys; not at all if who sent it gives up
        before.

    Raises:
      ShutDownError: If nobody obeys any more.
    """
    return await asyncio.wrap_future(self._send(command))

  def tell(self, command: Callable[[], Any]) -> None:
    """Sends a command that nobody waits for.

    Args:
      command: What it raises is logged.
    """
    self._send(command).add_done_callback(_log)

  def obey(self, *, wait: bool) -> None:
    """Runs the commands that have come.

    Args:
      wait: Whether to wait for one where there is none.
    """
    while True:
      try:
        letter = self._letters.get(block=wait)
      except queue.Empty:
        return
      self._run(letter)
      wait = False

  def open(self) -> None:
    """From here on somebody obeys."""
    self._closed = None

  def close(self, sentence: str) -> None:
    """From here on nobody obeys; who waits is told so.

    Args:
      sentence: Why.
    """
    self._closed = sentence
    self.obey(wait=False)

  def _send(self, command: Callable[[], _T]) -> concurrent.futures.Future[_T]:
    letter = _Letter(command, concurrent.futures.Future())
    self._letters.put(letter)
    # It may have come after the last look of the thread that obeyed.
    if self._closed is not None:
      self.obey(wait=False)
    return letter.result

  def _run(self, letter: _Letter) -> None:
    """Runs a command, or refuses it."""
    command, result = letter
    if not result.set_running_or_notify_cancel():
      return  # Who sent it has gone.
    if self._closed is not None:
      result.set_exception(ShutDownError(self._closed))
      return
    try:
      value = command()
    except Exception as error:
      result.set_exception(error)
    else:
      result.set_result(value)


def _log(result: concurrent.futures.Future[Any]) -> None:
  """Logs what a command raised that nobody waits for."""
  error = result.exception()
  if error is not None and not isinstance(error, ShutDownError):
    _LOG.error("a command failed", exc_info=error)
