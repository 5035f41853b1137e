"""The best plan for a stream that is short enough to try every plan.

Prices bound what fractions of states could save, and where there is room for
few states a fraction of one more is much. So of short streams every plan is
tried: which state each request resumes from, or none, such that at every step
there is room for the states that are held for later requests and for the pages
that go with them. A page that several of them need is held once, and none is
where the request that runs then has it on its way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.bounds.uses import Passage

_MOST_REQUESTS = 32
_MOST_TRIES = 30_000
_MOST_BITS = 2**29  # 64 MiB
_ROUNDING = 1e-9


class _Option(NamedTuple):
  """A state that a request could resume from.

  Attributes:
    gain: Blocks that it spares.
    first: The step that it must be held since.
    pages: From there on, per step, the pages that go with it, a bit for each.
  """

  gain: int
  first: int
  pages: tuple[int, ...]


def best_plan(
  prompts: Sequence[Passage],
  room: Float64[np.ndarray, "requests"],
  *,
  state: float,
  page: float,
  warmup: int,
  enough: int,
) -> int | None:
  """Returns what the best plan saves, in blocks.

  Args:
    prompts: Those that were served, in order.
    room: What there is between each request and the next, while that one runs.
    state: Size of a state.
    page: Size of a page.
    warmup: How many leading requests are not measured; before the last of them
      there is room for everything.
    enough: What no plan exceeds, where the search may stop.

  Returns:
    Its blocks; None where there are too many plans to try them, or their pages
    would take too much memory.

  >>> prompts = [Passage((n,), 1, 1) for n in (0, 1, 0, 1)]
  >>> room = np.array([2.0, 2.0, 2.0, 9.0])
  >>> best_plan(prompts, room, state=1.0, page=1.0, warmup=0, enough=2)
  1
  """
  if len(prompts) > _MOST_REQUESTS or _bits(prompts, warmup) > _MOST_BITS:
    return None
  search = _Search(_options(prompts, warmup), room, state, page, enough)
  search.go_on(0, 0)
  return None if search.tries > _MOST_TRIES else search.best


def _bits(prompts: Sequence[Passage], warmup: int) -> int:
  """How many bits the options take at most, counted before they are built."""
  number: dict[int, int] = {}
  visited: dict[int, int] = {}
  bits = 0
  for request, prompt in enumerate(prompts):
    last = 0
    usable = prompt.nodes[: prompt.limit] if request >= warmup else ()
    for node in usable:
      if node not in visited:
        break
      last = max(last, number[node] + 1)
      bits += last * (request - max(visited[node], warmup - 1))
    visited |= dict.fromkeys(prompt.nodes, request)
    for node in prompt.nodes:
      number.setdefault(node, len(number))
  # A bit for each node, as the numbers that they are put together from.
  return bits + len(number) ** 2 // 2


def _options(
  prompts: Sequence[Passage], warmup: int
) -> list[tuple[_Option, ...]]:
  """What each measured request could resume from, the deepest first."""
  nodes = {node: None for prompt in prompts for node in prompt.nodes}
  bits = {node: 1 << number for number, node in enumerate(nodes)}
  ways = [sum(bits[node] for node in prompt.nodes) for prompt in prompts]
  visited: dict[int, int] = {}
  found = []
  for request, prompt in enumerate(prompts):
    mine, pages = list[_Option](), 0
    usable = prompt.nodes[: prompt.limit] if request >= warmup else ()
    for depth, node in enumerate(usable, 1):
      if node not in visited:
        break
      pages |= bits[node]
      first = max(visited[node], warmup - 1)
      held = [pages & ~ways[step + 1] for step in range(first, request)]
      mine.append(_Option(depth, first, tuple(held)))
    found.append(tuple(reversed(mine)))
    visited |= dict.fromkeys(prompt.nodes, request)
  return found


class _Search:
  """Every plan in turn, but those that cannot exceed the best so far.

  Attributes:
    best: What the best plan saves.
    tries: How many partial plans were looked at.
  """

  def __init__(
    self,
    options: Sequence[Sequence[_Option]],
    room: Float64[np.ndarray, "requests"],
    state: float,
    page: float,
    enough: int,
  ) -> None:
    """Has tried nothing yet."""
    self.best = self.tries = 0
    self._options, self._enough = options, enough
    self._state, self._page = state, page
    self._room = (room * (1 + _ROUNDING) + _ROUNDING).tolist()
    self._states, self._pages = [0] * len(options), [0] * len(options)
    most = [max((one.gain for one in mine), default=0) for mine in options]
    self._rest = [sum(most[number:]) for number in range(len(options) + 1)]

  def go_on(self, request: int, saved: int) -> None:
    """Tries all that the requests from one on could choose.

    Args:
      request: The first that has not chosen.
      saved: What those before it save.
    """
    self.tries += 1
    self.best = max(self.best, saved)
    if self.tries > _MOST_TRIES or self.best >= self._enough:
      return
    if saved + self._rest[request] <= self.best:
      return
    for option in self._options[request]:
      if self._fits(option):
        before = self._hold(option)
        self.go_on(request + 1, saved + option.gain)
        self._undo(option, before)
    self.go_on(request + 1, saved)

  def _fits(self, option: _Option) -> bool:
    """Whether there is room for one more state and its pages."""
    return all(
      self._state * (self._states[step] + 1)
      + self._page * (self._pages[step] | pages).bit_count()
      <= self._room[step]
      for step, pages in enumerate(option.pages, option.first)
    )

  def _hold(self, option: _Option) -> list[int]:
    """Holds a state; what of pages was held before at its steps."""
    steps = slice(option.first, option.first + len(option.pages))
    before = self._pages[steps]
    self._pages[steps] = [a | b for a, b in zip(before, option.pages)]
    self._states[steps] = [count + 1 for count in self._states[steps]]
    return before

  def _undo(self, option: _Option, before: list[int]) -> None:
    """Holds a state no more."""
    steps = slice(option.first, option.first + len(option.pages))
    self._pages[steps] = before
    self._states[steps] = [count - 1 for count in self._states[steps]]
