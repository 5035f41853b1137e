"""What no policy can save with so many bytes, whatever it knows of the future.

As with K states (`of_states`), who resumes uses a state that was held
since the last visit of its prefix; with it were held the pages of all blocks of
the prefix. A page serves all states below it, so its price is shared: at every
step the shares of a page over the requests that could use it then sum to 1,

    price of an interval = sum over its steps t of  p_t * (S + P * sum over its
        blocks x of  1 / how many requests could use x at t)

with S and P the bytes of a state and of a page. Whatever is chosen, these are
no more bytes than it takes, so the bound stays one. While a request runs it
takes two states and the pages of its own prompt, which leaves

    room at t = C - 2 S - P * pages of the request that comes after t

for the rest, and what lies on its way costs nothing then. A stream that is
short enough to try every plan (`of_few`) has the best plan itself as its bound.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from sparse_prefix_jax.placement.bounds.dual import (
  ITERATIONS,
  Bound,
  Choices,
  Relaxed,
  lowest,
)
from sparse_prefix_jax.placement.bounds.of_few import best_plan
from sparse_prefix_jax.placement.bounds.uses import (
  Passage,
  Uses,
  merged,
  piece_owners,
  uses_of,
)

_FEWEST = 20


class _Dual:
  """The relaxed problem of so many bytes, in units of a state, or of a page.

  Attributes:
    state: Size of a state.
    page: Size of a page.
    room: What there is at every step.
  """

  def __init__(
    self, uses: Uses, capacity: int, state_bytes: int, page_bytes: int
  ) -> None:
    """Knows who may choose what, and what room there is.

    Raises:
      ValueError: If a size is negative.
    """
    if min(capacity, state_bytes, page_bytes) < 0:
      raise ValueError(
        "capacity, state_bytes and page_bytes must not be negative, got"
        f" {capacity}, {state_bytes} and {page_bytes}"
      )
    # A model without recurrent layers has states of no bytes.
    unit = state_bytes or page_bytes or 1
    self._uses, self._choices = uses, Choices(uses.request)
    self.state, self.page = state_bytes / unit, page_bytes / unit
    room = np.full(uses.room.size, capacity / unit)
    room[:-1] -= 2 * self.state + self.page * uses.room[:-1]
    # Whoever runs although he does not fit leaves nothing, and owes nothing.
    self.room = np.maximum(room, 0.0)
    self._piece_of = piece_owners(uses)

  def relax(self, prices: Float64[np.ndarray, "steps"]) -> Relaxed:
    """Lets every request choose by itself."""
    gained, chosen = self._choices.best(self.profit(prices))
    slope = self.room - self._taken(chosen)
    value = gained + float((self.room * prices).sum())
    return Relaxed(value, prices, slope)

  def profit(
    self, prices: Float64[np.ndarray, "steps"]
  ) -> Float64[np.ndarray, "n"]:
    """What each interval spares beyond its price."""
    uses = self._uses
    sums = np.concatenate([[0.0], np.cumsum(prices)])
    state = sums[uses.request] - sums[uses.since]
    of_visit = (sums[uses.end] - sums[uses.time]) / uses.sharing
    so_far = np.concatenate([[0.0], np.cumsum(of_visit)])
    of_piece = uses.blocks * (so_far[uses.last] - so_far[uses.first])
    pages = np.add.reduceat(of_piece, uses.pieces)
    return uses.gain - self.state * state - self.page * pages

  def _taken(
    self, chosen: Int64[np.ndarray, "chosen"]
  ) -> Float64[np.ndarray, "steps"]:
    """What chosen intervals take at every step."""
    uses, steps, visits = self._uses, self.room.size, self._uses.time.size
    starts = np.bincount(uses.since[chosen], minlength=steps)
    ends = np.bincount(uses.request[chosen], minlength=steps)
    marked = np.zeros(uses.request.size, np.bool_)
    marked[chosen] = True
    mine = marked[self._piece_of]
    blocks = uses.blocks[mine]
    held = np.bincount(uses.first[mine], blocks, visits + 1)
    held -= np.bincount(uses.last[mine], blocks, visits + 1)
    share = np.cumsum(held)[:-1] / uses.sharing
    pages = np.bincount(uses.time, share, steps)
    pages -= np.bincount(uses.end, share, steps)
    states = np.cumsum(starts - ends)
    return self.state * states + self.page * np.cumsum(pages)


def upper_bound_of_bytes(
  prompts: Sequence[Passage],
  *,
  capacity: int,
  state_bytes: int,
  page_bytes: int,
  warmup: int = 0,
  work: int | None = None,
) -> Bound:
  """Returns an upper bound on what so many bytes can save.

  Args:
    prompts: What was served, in order; who was refused is left out.
    capacity: Bytes of states and pages, of who runs too.
    state_bytes: Of a state; 0 for a model without recurrent layers.
    page_bytes: Of a page; 0 for one without attention.
    warmup: How many leading ones are not measured. When they have passed,
      whatever could have been captured may be held.
    work: How many pieces of intervals may be looked at, at most, while the
      bound is lowered; None for as many as it takes.

  Raises:
    ValueError: If a size is negative.

  >>> twice = [Passage((0, 1, 2), 2, 3)] * 2
  >>> sizes = {"state_bytes": 10, "page_bytes": 1}
  >>> upper_bound_of_bytes(twice, capacity=50, **sizes).blocks
  2
  """
  if not prompts:
    return Bound(0, np.zeros(0))
  uses = merged(uses_of(prompts, warmup=warmup))
  steps = (np.arange(len(prompts)) >= warmup - 1).astype(float)
  if not uses.request.size:
    return Bound(0, np.zeros(len(prompts)))
  dual = _Dual(uses, capacity, state_bytes, page_bytes)
  iterations = ITERATIONS
  if work is not None:
    iterations = min(ITERATIONS, max(_FEWEST, work // uses.first.size))
  bound = lowest(dual, steps, iterations)
  best = best_plan(
    prompts,
    dual.room,
    state=dual.state,
    page=dual.page,
    warmup=warmup,
    enough=bound.blocks,
  )
  return bound if best is None else bound._replace(blocks=best)


def hindsight_of_bytes(
  prompts: Sequence[Passage],
  bound: Bound,
  *,
  capacity: int,
  state_bytes: int,
  page_bytes: int,
) -> int:
  """Returns the blocks that one plan saves, knowing the future.

  The requests choose in the order of how much their best interval exceeds its
  prices; whoever finds no room takes his next best. It is a plan, not the best
  one: the best one saves at least as much, and at most the bound.

  It may begin to keep a prefix above the state that a prompt resumes from, as
  the bound allows; a server computes nothing there, and cannot.

  Args:
    prompts: As of `upper_bound_of_bytes`, all of them measured.
    bound: What that gave for them.
    capacity: Bytes.
    state_bytes: Of a state.
    page_bytes: Of a page.
  """
  if not bound.blocks:
    return 0
  uses = uses_of(prompts)
  dual = _Dual(uses, capacity, state_bytes, page_bytes)
  profit = dual.profit(bound.prices)
  left, held = dual.room.copy(), np.zeros(uses.time.size)
  served, saved = np.zeros(len(prompts), np.bool_), 0
  ends = np.append(uses.pieces[1:], uses.first.size)
  for one in np.lexsort((uses.gain, profit))[::-1].tolist():
    if served[uses.request[one]]:
      continue
    own = slice(uses.pieces[one], ends[one])
    visits, blocks = _held_visits(uses, own)
    more = np.maximum(blocks - held[visits], 0) * dual.page
    need = np.zeros(left.size + 1)
    np.add.at(need, uses.time[visits], more)
    np.add.at(need, uses.end[visits], -more)
    need = np.cumsum(need)[:-1]
    need[uses.since[one] : uses.request[one]] += dual.state
    if (need > left + 1e-9).any():
      continue
    left -= need
    held[visits] = np.maximum(held[visits], blocks)
    served[uses.request[one]] = True
    saved += int(uses.gain[one])
  return saved


def _held_visits(uses: Uses, own: slice) -> tuple[np.ndarray, np.ndarray]:
  """After which visits an interval holds pages, and how many of a stretch."""
  sizes = uses.last[own] - uses.first[own]
  ranges = [
    np.arange(first, last)
    for first, last in zip(uses.first[own].tolist(), uses.last[own].tolist())
  ]
  return np.concatenate(ranges), np.repeat(uses.blocks[own], sizes)
