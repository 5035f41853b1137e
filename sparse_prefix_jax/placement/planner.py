"""From a policy's name to positions on the lattice, for a host that serves.

A `Planner` sees the overlap of every request and says where the request's own
entry should keep states. The simulator and the prefix cache both use it.

By the paper's rules a plan is made while the request waits that needs it, and
placed by at once. A server cannot wait: of `Planner(serving=True)` a plan
begins after every E observations, is computed beside the requests and takes
effect E observations later. `conditional`, which has no placement without
statistics, plans after each of the first observations too, for the next one.
"""

from collections.abc import Iterable
from typing import Any

from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.placement.background import UnderWay
from sparse_prefix_jax.placement.conditional import Conditional
from sparse_prefix_jax.placement.cue_learner import CueLearner
from sparse_prefix_jax.placement.cues import Prompt
from sparse_prefix_jax.placement.expectation import depths_of, expected_lost
from sparse_prefix_jax.placement.features import Features, check_known
from sparse_prefix_jax.placement.heuristics import spaced
from sparse_prefix_jax.placement.inputs import Vector, concrete_cost
from sparse_prefix_jax.placement.learners import (
  OverlapLearner,
  learner_of,
  worth_of,
)
from sparse_prefix_jax.placement.own import checked_positions, rule_of
from sparse_prefix_jax.placement.policy import SHARED, PlacementPolicy
from sparse_prefix_jax.placement.pooled import Pooled
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.whole_numbers import check_at_least, check_whole

# So many first observations have a plan each; then powers of two, up to E.
_SOON = 10


class Planner:
  """Statistics of overlaps, and the plan that was last made from them.

  Before the first plan the learned policies place like `balanced` with the same
  budget, but for `conditional`, which looks at one entry alone then. It also
  plans while it warms up: its budget is an average that holds from the start.

  A planner belongs to one thread at a time. What it places is a function of the
  calls that it received, never of a clock: plans that are late are waited for.

  Attributes:
    policy: What it plans by.
    worth: Of `adaptive`, which weighs states against each other and places no
      entry by itself: what they are worth. None for the others.
    observations: How many overlaps were observed, misses included.

  >>> planner = Planner(PlacementPolicy("optimal", budget=1), depths=16)
  >>> planner.positions(640)
  (320,)
  >>> planner.observe(200)
  >>> planner.positions(640)
  (192,)
  """

  def __init__(
    self,
    policy: PlacementPolicy,
    *,
    depths: int,
    cost: Vector | None = None,
    warming_up: bool = False,
    serving: bool = False,
    background: bool = True,
  ) -> None:
    """Starts with empty statistics.

    Args:
      policy: What to plan by.
      depths: Number of depth bins N of `policy.chunk` tokens, at least 2;
        deeper overlaps count in the last bin.
      cost: [N] Cumulative cost F of prefilling to each depth, integers or
        floats, F(0) = 0, never decreasing; None for the linear one. `optimal`
        and `conditional` spare as much of it as they can; `dp` is the paper's,
        for which every chunk costs the same.
      warming_up: Make no plan, or no final one, until `end_warmup` is called.
      serving: Plan beside the requests, and let `last` be the deepest position
        from which the same prompt can be resumed. False for the paper's rules:
        a plan is made when it is needed, and `last` may be the prompt's end.
      background: Compute plans in a thread (only when serving); False leaves
        each to the call that needs it. The plans are the same.

    Raises:
      ValueError: If there are fewer than two depths, the cost is not as
        described, or the policy is none for single entries and does not serve.

    >>> planner = Planner(PlacementPolicy("last"), depths=16, serving=True)
    >>> planner.positions(128)
    (64,)
    """
    check_class("policy", policy, PlacementPolicy)
    depths = check_at_least("depths", depths, 2)
    if policy.name in SHARED and not serving:
      raise ValueError(
        f"placement {policy.name} is for one budget of all entries; a planner"
        " that does not serve places single ones and does not have it"
      )
    checked = None if cost is None else concrete_cost(cost, depths)
    self.policy = policy
    self._depths, self._cost = depths, checked
    self.worth = worth_of(policy, checked) if policy.name in SHARED else None
    self.observations = 0
    self._own = rule_of(policy.name, policy.budget)
    self._learner = learner_of(policy, depths, checked, beside=serving)
    self._cues = CueLearner(chunk=policy.chunk) if self.worth else None
    self._serving, self._background = serving, background
    self._warming_up = warming_up
    self._planned = self._stale = False
    self._under_way = UnderWay[Any](background=background)

  def fresh(self) -> "Planner":
    """Returns a server's planner by the same policy, with empty statistics.

    >>> planner = Planner(PlacementPolicy("adaptive"), depths=16, serving=True)
    >>> planner.fresh().worth is planner.worth
    False
    """
    return Planner(
      self.policy,
      depths=self._depths,
      cost=self._cost,
      serving=True,
      background=self._background,
    )

  def renew_worth(self) -> Adaptive | None:
    """Forgets what states are worth: learning it failed half way.

    Returns:
      The new `worth`; None where the placement weighs nothing.

    >>> planner = Planner(PlacementPolicy("adaptive"), depths=16, serving=True)
    >>> before = planner.worth
    >>> planner.renew_worth() is before
    False
    """
    if self.worth is not None:
      self.worth = worth_of(self.policy, self._cost)
    return self.worth

  @property
  def learned_bytes(self) -> int:
    """Host memory of what states are worth and of cues, 0 for other policies.

    >>> Planner(PlacementPolicy("last"), depths=16).learned_bytes
    0
    """
    cues = self._cues.bytes if self._cues else 0
    return cues + (self.worth.remembered_bytes if self.worth else 0)

  def catch_up(self) -> None:
    """Learns what the next prompt would wait for.

    >>> planner = Planner(PlacementPolicy("adaptive"), depths=16, serving=True)
    >>> planner.catch_up()
    """
    if self._cues:
      self._cues.catch_up()

  def describe(
    self,
    length: int,
    overlap_tokens: int,
    matched: Features | None = None,
    prompt: Prompt | None = None,
  ) -> Features:
    """Says what a placement needs to know of an entry, to be kept with it.

    Args:
      length: Tokens of the entry.
      overlap_tokens: How many of them equal a stored prefix.
      matched: What this said of the entry that has this prefix, None if it is
        not known.
      prompt: Its tokens, where they are known.

    >>> planner = Planner(PlacementPolicy("conditional", 1), depths=16)
    >>> planner.describe(640, 0)
    Features(length=640, overlap=0, age=0, born=0, cue=0)
    """
    check_known(matched=matched, prompt=prompt)
    length = check_at_least("length", length, 0)
    overlap_tokens = check_at_least("overlap_tokens", overlap_tokens, 0)
    age = 0 if matched is None else max(1, self.observations - matched.born)
    teller, cue = self._cues or self._learner, 0
    if prompt is not None and not isinstance(teller, Pooled | None):
      cue = teller.cue(prompt, overlap_tokens)
    return Features(length, overlap_tokens, age, self.observations, cue)

  def observe(
    self,
    overlap_tokens: int,
    *,
    entry: Features | None = None,
    matched: Features | None = None,
    prompt: Prompt | None = None,
  ) -> None:
    """Counts the overlap of one request; misses count, as 0.

    Args:
      overlap_tokens: Leading tokens that equal a stored prefix, >= 0.
      entry: What `describe` said of the request's own entry.
      matched: What it said of the entry that was matched. `conditional` learns
        from both, and nothing without the first.
      prompt: Its tokens, where they are known, to learn where entries are left.

    Raises:
      ValueError: If an argument cannot be meant; nothing is counted then.

    >>> planner = Planner(PlacementPolicy("optimal", 1), depths=16)
    >>> planner.observe(130)
    >>> planner.positions(640)
    (128,)
    """
    overlap_tokens = check_at_least("overlap_tokens", overlap_tokens, 0)
    check_known(entry=entry, matched=matched, prompt=prompt)
    self._under_way.go()
    self.observations += 1
    if self._own is not None and entry is not None:
      self._own.observe(entry.length, overlap_tokens)
    if self._cues and matched and prompt is not None:
      self._cues.observe(overlap_tokens, matched=matched, prompt=prompt)
    if self._learner is None:
      return
    if not self._settled():
      self._learner.observe(
        overlap_tokens, entry=entry, matched=matched, prompt=prompt
      )
    if self.observations % self.policy.every == 0:
      self._stale = True
      self._begin(self._learner, due=self.observations + self.policy.every)
    elif self._is_early(self.observations):
      self._begin(self._learner, due=self.observations + 1)

  def _is_early(self, observations: int) -> bool:
    """Whether to plan before E observations, for the next request.

    `conditional` places by statistics from the first request on, and without a
    plan the next one would wait until they are learned.
    """
    soon = observations < _SOON or observations & (observations - 1) == 0
    early = soon and observations < self.policy.every
    again = self.policy.replan != "frozen"  # which makes its only plan later
    return early and again and isinstance(self._learner, Conditional)

  def _begin(self, learner: OverlapLearner, *, due: int) -> None:
    """Begins a plan beside the requests, as a server does."""
    if self._serving and self._may_plan():
      self._under_way.begin(learner.planning(), due=due)

  def end_warmup(self) -> None:
    """Makes the first plan, from everything observed so far, and waits for it.

    >>> planner = Planner(
    ...   PlacementPolicy("optimal", 1), depths=16, warming_up=True
    ... )
    >>> planner.observe(200)
    >>> planner.positions(640)
    (320,)
    >>> planner.end_warmup()
    >>> planner.positions(640)
    (192,)
    """
    self._warming_up = False
    self._under_way.drop()
    if self._learner and self._learner.observations:
      self._adopt(self._learner.planning()())

  def compile(self) -> None:
    """Compiles what plans need and starts their thread, so no request waits.

    The first plan would do it otherwise, and slow down what runs beside it.

    >>> Planner(PlacementPolicy("optimal", 1), depths=16).compile()
    """
    if self._learner is None:
      return
    self._learner.compile()
    if self._serving:
      self._under_way.start()

  def positions(
    self, length: int, features: Features | None = None
  ) -> tuple[int, ...]:
    """Says where an entry should keep states.

    Args:
      length: Tokens of the entry.
      features: What `describe` said of it; None for an entry of which only
        the length is known. `conditional` and placements of your own ask.

    Returns:
      Strictly ascending positions in tokens, multiples of the chunk,
      0 < p <= length.

    >>> Planner(PlacementPolicy("block", 128), depths=16).positions(300)
    (128, 256)
    """
    return tuple(p for p in self.marks(length, features) if p > 0)

  def expected_lost(
    self, positions: Iterable[int], features: Features
  ) -> float | None:
    """Says how many tokens the next prompt that matches an entry will lose.

    Args:
      positions: Where the entry keeps states, ascending multiples of the
        chunk.
      features: What `describe` said of it.

    Returns:
      The mean by its statistics; None for a placement without any.
    """
    check_known(required=True, features=features)
    learner, chunk = self._learner, self.policy.chunk
    if learner is None or not learner.observations:
      return None
    survival = learner.survival(features)
    depths = depths_of(positions, chunk=chunk, deepest=survival.size)
    return chunk * expected_lost(survival, depths)

  def marks(
    self, length: int, features: Features | None = None
  ) -> tuple[int, ...]:
    """Says the same as `positions`, and 0 for a wished place within chunk 0.

    The paper counts that one as stored, though it saves nothing.

    Args:
      length: Tokens of the entry.
      features: What `describe` said of it, or None.

    >>> Planner(PlacementPolicy("block", 40), depths=16).marks(100)
    (0, 64)
    """
    chunk = self.policy.chunk
    check_known(features=features)
    length = check_whole("length", length)
    wished = self._wished(length, features or Features(length))
    return tuple(sorted({p // chunk * chunk for p in wished}))

  def _wished(self, length: int, features: Features) -> list[int] | range:
    """Positions in tokens before they are floored to the lattice."""
    if self.worth:
      return []
    if self._own is not None:
      return checked_positions(
        self._own.positions(length, features.overlap), length
      )
    name, budget = self.policy.name, int(self.policy.budget or 0)
    if name == "last" and self._serving:
      # The last token has to be computed again for its logits. The other
      # policies keep a place at the very end: a longer prompt may need it.
      length = max(length - 1, 0)
    if self._learner is None:
      return spaced(name, length, budget)
    self._refresh(self._learner)
    depths = self._learner.depths(features._replace(length=length))
    self._under_way.go()
    if depths is None:
      return spaced("balanced", length, budget)
    return [depth * self.policy.chunk for depth in depths]

  def _refresh(self, learner: OverlapLearner) -> None:
    """Puts the plan into effect by which the next entry is to be placed."""
    if self._serving:
      self._under_way.take(self.observations, self._adopt)
    elif self._may_plan() and self._due():
      self._adopt(learner.planning()())

  def _due(self) -> bool:
    """Whether a plan has to be made before the next placement."""
    if self.policy.replan == "frozen" and not self._warming_up:
      return self.observations >= self.policy.every
    return self._stale or not self._planned

  def _settled(self) -> bool:
    """Whether the only plan of a frozen policy has been made, or begun."""
    frozen = self.policy.replan == "frozen" and not self._warming_up
    return frozen and (self._planned or len(self._under_way) > 0)

  def _may_plan(self) -> bool:
    """Whether a plan could be made now."""
    if self._learner is None or not self._learner.observations:
      return False
    early = self._warming_up and self.policy.name != "conditional"
    return not early and not self._settled()

  def _adopt(self, plan: Any) -> None:
    """Puts a plan into effect."""
    if self._learner is not None:
      self._learner.adopt(plan)
    self._planned, self._stale = True, False
