"""Where a text ends: before the first of some strings."""

from collections.abc import Iterable, Sequence
from typing import Any

from sparse_prefix_jax.kinds import brief

_MOST = 16


def checked_stops(stop: Any) -> tuple[str, ...]:
  """The stop strings that a caller named.

  Args:
    stop: One string, several, or None.

  Raises:
    ValueError: If one is no string or empty, or there are more than 16.

  Example:
    >>> checked_stops("END"), checked_stops(None)
    (('END',), ())
    >>> checked_stops(["a", ""])
    Traceback (most recent call last):
    ValueError: stop holds ''; a stop string has at least one character.
  """
  stops = (stop,) if isinstance(stop, str) else stop
  if stops is None:
    return ()
  if not isinstance(stops, Sequence) or isinstance(stops, bytes):
    raise ValueError(
      f"stop is {brief(stop)}; it must be a string, or a list of them."
    )
  for one in stops:
    if not isinstance(one, str):
      raise ValueError(f"stop holds {brief(one)}; it must hold strings alone.")
    if not one:
      raise ValueError(
        f"stop holds {brief(one)}; a stop string has at least one character."
      )
  if len(stops) > _MOST:
    raise ValueError(f"stop has {len(stops)} strings; it may have {_MOST}.")
  return tuple(stops)


class StopScanner:
  """Cuts a text before the stop string that is complete first.

  However a text is cut into pieces, what comes out is the same: as if it came
  character by character. Of two that are complete with the same character the
  longer one counts. Text that may be the start of a stop string waits.

  Attributes:
    stopped: The stop string that was found, or None.

  Example:
    >>> scanner = StopScanner(["END"])
    >>> scanner.push("to the E"), scanner.push("N"), scanner.push("D or on")
    ('to the ', '', '')
    >>> scanner.stopped
    'END'
  """

  def __init__(self, stops: Iterable[str]) -> None:
    """Begins with no text.

    Args:
      stops: Of `checked_stops`; none lets everything through.
    """
    self._stops = tuple(stops)
    self._waiting = ""
    self.stopped: str | None = None

  def push(self, text: str) -> str:
    """Adds text.

    Args:
      text: What follows.

    Returns:
      What certainly belongs to the text, perhaps nothing.
    """
    if self.stopped is not None:
      return ""
    self._waiting += text
    found = [
      (start + len(stop), start, stop)
      for stop in self._stops
      if (start := self._waiting.find(stop)) >= 0
    ]
    if found:
      _, start, self.stopped = min(found)
      return self._give(start)
    return self._give(len(self._waiting) - self._open_end())

  def finish(self) -> str:
    """Ends the text; what waited belongs to it, unless it was stopped."""
    return "" if self.stopped is not None else self._give(len(self._waiting))

  def _open_end(self) -> int:
    """Characters at the end that may be the start of a stop string."""
    text = self._waiting
    longest = max(map(len, self._stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
      if any(stop.startswith(text[-size:]) for stop in self._stops):
        return size
    return 0

  def _give(self, size: int) -> str:
    """Gives out that many characters."""
    text, self._waiting = self._waiting[:size], self._waiting[size:]
    return text
