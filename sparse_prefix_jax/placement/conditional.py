"""Every entry placed by what is known of it: `Conditional`.

`mixture` says where an entry will be left and how often, `priced` which states
are worth a price that all entries share. Here is when the price is found: by a
plan, on the last entries under the statistics of that moment.

Learning takes a fifth of a millisecond, which a request need not wait for:
observations are only noted, and learned where the statistics are looked at,
which in a server the next plan does.
"""

from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float64

from sparse_prefix_jax.placement.background import PlanWork, pause
from sparse_prefix_jax.placement.cues import Prompt
from sparse_prefix_jax.placement.features import Features, check_known
from sparse_prefix_jax.placement.inputs import concrete_cost
from sparse_prefix_jax.placement.mixture import Mixture
from sparse_prefix_jax.placement.policy import PlacementPolicy
from sparse_prefix_jax.placement.priced import (
  CommonPrice,
  Steps,
  common_price,
  solve_steps,
)
from sparse_prefix_jax.whole_numbers import check_at_least

# Entries over which a price spends the budget.
_WINDOW = 64

_Observation: TypeAlias = tuple[int, Features, Features | None, Prompt | None]
"""An overlap, the entry that it leaves, the one it matched, and its tokens."""


class Learned:
  """Statistics after some observations, which are learned when asked for.

  >>> before = Learned(Mixture.create(chunk=64, depths=8, decay=0.99))
  >>> Learned(before, ((0, Features(128), None, None),)).mixture().entries.sum()
  np.float64(1.0)
  """

  def __init__(
    self,
    before: "Mixture | Learned",
    observed: tuple[_Observation, ...] = (),
  ) -> None:
    """Learns nothing yet.

    Args:
      before: What was known before.
      observed: What was observed since, in order.
    """
    self._todo: tuple[Mixture | Learned, tuple[_Observation, ...]] | None = (
      before,
      observed,
    )
    self._mixture: Mixture | None = None

  def mixture(self) -> Mixture:
    """Returns the statistics; may be called by several threads at a time."""
    todo = self._todo
    if todo is not None:
      before, observed = todo
      mixture = before if isinstance(before, Mixture) else before.mixture()
      for overlap, entry, matched, prompt in observed:
        pause()
        mixture = mixture.observe(
          overlap, entry=entry, matched=matched, prompt=prompt
        )
      # Two threads may come here, and find the same.
      self._mixture, self._todo = mixture, None
    assert self._mixture is not None
    return self._mixture


class PricedPlan(NamedTuple):
  """What entries are placed by until the next plan.

  Attributes:
    price: What a state has to gain.
    learned: The statistics under which the price was found.
  """

  price: CommonPrice
  learned: Learned


class Conditional:
  """Statistics of where entries are left, and a price for states.

  Attributes:
    budget: States per entry, on average over entries.
    observations: Overlaps observed, misses included.

  >>> planner = Conditional(budget=1, chunk=64, depths=32)
  >>> for born in range(8):  # every prompt ends in a question of a chunk
  ...   entry = Features(length=640, born=born)
  ...   planner.observe(576, entry=entry, matched=entry)
  >>> planner.depths(Features(length=640))
  [9]
  """

  def __init__(
    self,
    *,
    budget: int | float,
    chunk: int,
    depths: int,
    decay: float = 0.99,
    cost: np.ndarray | None = None,
    beside: bool = False,
  ) -> None:
    """Starts without statistics.

    Args:
      budget: States per entry, >= 0; a fraction is an average like any other.
      chunk: Tokens per depth bin.
      depths: Number of depth bins N, at least 2; what lies deeper counts in
        the last.
      decay: What an observation leaves of the rates, and an overlap of the
        other statistics.
      cost: [N] Cumulative cost F of prefilling to each depth, F(0) = 0, never
        decreasing; None for the linear one.
      beside: Place by the statistics of the plan, so that none has to be
        learned while a request waits. False for the statistics of the moment,
        as before the first plan.

    Raises:
      ValueError: If a number is out of range, or the cost is not as described.
    """
    depths = check_at_least("depths", depths, 2)
    PlacementPolicy("conditional", budget, chunk=chunk, decay=decay)
    paid = None if cost is None else concrete_cost(cost, depths)
    # More states than depths are of no use, and may exceed any float.
    self.budget = float(min(budget, depths))
    self.observations = 0
    self._chunk, self._last = chunk, depths - 1
    self._cost = None if paid is None else paid.astype(np.float64)
    self._beside = beside
    nothing = Mixture.create(chunk=chunk, depths=depths, decay=decay)
    self._learned, self._noted = Learned(nothing), ()
    self._recent: tuple[Features, ...] = ()
    self._plan: PricedPlan | None = None
    self._first: CommonPrice | None = None

  def observe(
    self,
    overlap: int,
    *,
    entry: Features | None,
    matched: Features | None = None,
    prompt: Prompt | None = None,
  ) -> None:
    """Learns from one request; beside requests, the next plan does.

    Args:
      overlap: Its leading tokens that equal a stored prefix.
      entry: What is known of the entry that it leaves; nothing is learned if
        that is None.
      matched: What is known of the entry that it matched; None for none, or
        one unknown.
      prompt: Its tokens, where they are known.
    """
    overlap = check_at_least("overlap", overlap, 0)
    check_known(entry=entry, matched=matched, prompt=prompt)
    if entry is None:
      return
    self.observations += 1
    self._noted = (*self._noted, (overlap, entry, matched, prompt))
    self._recent = (*self._recent[1 - _WINDOW :], entry)
    if not self._beside:
      self.learned().mixture()

  def learned(self) -> Learned:
    """The statistics after all that was observed."""
    if self._noted:
      self._learned, self._noted = Learned(self._learned, self._noted), ()
    return self._learned

  def planning(self) -> PlanWork[PricedPlan]:
    """Returns what computes a plan of the present statistics.

    It may be called at any time and in any thread: it holds all that it needs,
    which is at least one observation. `adopt` puts the plan into effect.
    """
    start = None if self._plan is None else self._plan.price.low
    return partial(
      _plan_of, self.learned(), self._recent, self.budget, self._cost, start
    )

  def adopt(self, plan: PricedPlan) -> None:
    """Puts a plan into effect.

    Args:
      plan: What all entries are placed by from now on.
    """
    self._plan = plan

  def compile(self) -> None:
    """Places an entry that nobody asked for: the first time takes longest."""
    steps = steps_of(self._placed_by(), Features(2 * self._chunk), self._cost)
    price = common_price([steps], self.budget)
    solve_steps(steps, price.low)

  def depths(self, features: Features) -> list[int] | None:
    """Says where an entry should keep states, in chunks, in ascending order.

    Before the first plan, the entry pays what it would if all were like it.
    The features alone decide, until the next observation or plan.

    Args:
      features: What is known of the entry.

    Returns:
      The depths; None where nothing has been observed.
    """
    check_known(required=True, features=features)
    if not self.observations:
      return None
    if not self.budget or features.length < self._chunk:
      return []
    steps = steps_of(self._placed_by(), features, self._cost)
    plan = self._plan
    price = plan.price if plan else self._first_price(steps)
    return solve_steps(steps, price.of(features.born))

  def cue(self, prompt: Prompt, overlap: int) -> int:
    """Says where the tokens of a prompt tell that it will be left.

    Args:
      prompt: Its tokens.
      overlap: How many of them equal a stored prefix.

    Returns:
      A position in tokens, 0 for none.
    """
    check_known(required=True, prompt=prompt)
    if not self.budget:
      return 0
    sure = overlap >= self._chunk
    return self._placed_by().cues.position(prompt, sure=sure)

  def survival(self, features: Features) -> Float64[np.ndarray, "n"]:
    """Says how many requests will reach each depth of an entry, as `Mixture`.

    Args:
      features: What is known of the entry.

    Returns:
      [n] The survival at the depths 1 to its last whole chunk.

    >>> Conditional(budget=1, chunk=64, depths=8).survival(Features(128))
    array([0.5 , 0.25])
    """
    check_known(required=True, features=features)
    end = min(features.length // self._chunk, self._last)
    if end < 1:
      return np.zeros(0)
    return self._placed_by().survival_at(np.arange(1, end + 1), features)

  def _placed_by(self) -> Mixture:
    """The statistics that the next entry is placed by."""
    plan = self._plan
    learned = plan.learned if plan and self._beside else self.learned()
    return learned.mixture()

  def _first_price(self, steps: Steps) -> CommonPrice:
    """The price of one entry alone, which takes no time."""
    start = None if self._first is None else self._first.low
    self._first = common_price([steps], self.budget, start=start)
    return self._first


def steps_of(
  mixture: Mixture,
  features: Features,
  cost: np.ndarray | None = None,
) -> Steps:
  """Describes an entry as a placement problem: places, their cost and survival.

  Args:
    mixture: The statistics.
    features: What is known of the entry.
    cost: [N] Cumulative cost F, None for the linear one.

  >>> empty = Mixture.create(chunk=64, depths=8, decay=0.99)
  >>> steps_of(empty, Features(128)).survival
  array([0.5 , 0.25])
  """
  return Steps.of(*mixture.staircase(features), cost)


def _plan_of(
  learned: Learned,
  recent: tuple[Features, ...],
  budget: int | float,
  cost: np.ndarray | None,
  start: float | None,
) -> PricedPlan:
  """The price at which the last entries would keep the budget."""
  mixture, entries = learned.mixture(), []
  for features in recent:
    pause()
    entries.append(steps_of(mixture, features, cost))
  price = common_price(entries, budget, start=start, pause=pause)
  return PricedPlan(price, learned)
