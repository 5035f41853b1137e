"""What can be seen of a prefix index; nothing here changes it."""

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from .audit import audit
from .budget import Budget, Lease
from .eviction import Eviction, EvictionRule, Worth, given_rule
from .forest import Forest
from .ledger import Ledger
from .matching import describe_match
from .order import Order
from .remembered import Remembered
from .results import IndexStats, Match, Pin
from .tree import Entry, State, walk


class IndexView:
  """Trees, rule, ledger and pins, and looks at them.

  Attributes:
    evictions: How many states were dropped to make room.

  Args:
    budget: What may be held.
    eviction: The rule, or its name, a key of `EVICTIONS`.
    block_size: Tokens of a block; only for keys that are not bytes.
    renew: Makes a rule where one fails that was given as it is.

  Raises:
    ValueError: If the rule is unknown or a block has less than one token.
  """

  def __init__(
    self,
    budget: Budget,
    eviction: EvictionRule | Eviction = "lru",
    *,
    block_size: int = 1,
    renew: Callable[[], EvictionRule] | None = None,
  ) -> None:
    """Starts empty; see the class."""
    if block_size < 1:
      raise ValueError(f"block_size must be at least 1, got {block_size}.")
    self.evictions = 0
    self._block_size = block_size
    rule = given_rule(eviction)
    if rule is not eviction and renew is None:
      renew = partial(given_rule, eviction)
    self._ledger = Ledger(budget)
    self._remembered = Remembered(budget.remembered_bytes)
    self._forest = Forest(self._ledger, self._remembered)
    self._order = Order(rule, renew, self._forest.states)
    self._pins: set[Pin] = set()

  @property
  def worth(self) -> Worth | None:
    """The rule, if it weighs what a prompt might keep; None if it does not."""
    return self._order.worth

  @property
  def lost(self) -> bool:
    """Whether the rule failed and no new one could be made."""
    return self._order.lost

  def finishing(self) -> AbstractContextManager[None]:
    """A verb of several: what the rule raises is raised when all are done."""
    return self._order.finishing()

  def raise_failure(self) -> None:
    """Raises now what the rule raised in a verb that goes on."""
    self._order.raise_failure()

  def asked(self) -> AbstractContextManager[EvictionRule]:
    """Asks the rule for something; one that raises is not used again."""
    return self._order.asked()

  def match(
    self,
    blocks: Sequence[Hashable],
    tail: bytes = b"",
    *,
    salt: bytes = b"",
    limit: int | None = None,
  ) -> Match:
    """Finds the longest known prefix of a prompt; nothing changes.

    Args:
      blocks: Keys of the whole blocks of the prompt.
      tail: Key of its remaining tokens.
      salt: The tenant; nothing is shared between salts.
      limit: Deepest block count to resume at; None: no limit.

    Raises:
      ValueError: If the limit is negative.
    """
    if limit is not None and limit < 0:
      raise ValueError(f"limit must not be negative, got {limit}.")
    root = self._forest.roots.get(salt)
    return describe_match(
      root,
      walk(root, blocks),
      blocks,
      tail,
      limit=limit,
      block_size=self._block_size,
      elsewhere=bool(blocks) and blocks[0] in self._forest.beginnings,
    )

  def proposed(self, match: Match, blocks: int) -> Collection[int]:
    """Depths that the rule wants a prompt to keep besides the placement's.

    Args:
      match: What is stored of it.
      blocks: Its whole blocks.
    """
    return self._order.proposes(match, blocks)

  def unheld(self) -> Lease:
    """Slots and pages that nobody holds, of those that the budget allows."""
    return self._ledger.unheld()

  def __len__(self) -> int:
    """How many entries are remembered."""
    return len(self._remembered)

  def __contains__(self, entry: object) -> bool:
    """Whether an entry is remembered."""
    return entry in self._remembered

  @property
  def entries(self) -> tuple[Entry, ...]:
    """The entries, the one used longest ago first."""
    return tuple(self._remembered)

  @property
  def states(self) -> tuple[State, ...]:
    """The states in the rule's order, the next victim first."""
    return tuple(self._order.rule)

  @property
  def budget(self) -> Budget:
    """What may be held."""
    return self._ledger.budget

  @property
  def held_slots(self) -> int:
    """Slots of the tree and of leases."""
    return self._ledger.slots.held

  @property
  def held_pages(self) -> int:
    """Pages of the tree and of leases, shared ones once."""
    return self._ledger.pages.held

  @property
  def held_bytes(self) -> int:
    """Bytes of both; at most `budget.capacity_bytes`."""
    return self.budget.bytes_of(self.held_slots, self.held_pages)

  @property
  def stats(self) -> IndexStats:
    """Counts for a report."""
    return IndexStats(
      entries=len(self),
      states=len(self._order.rule),
      pins=len(self._pins),
      held_slots=self.held_slots,
      held_pages=self.held_pages,
      held_bytes=self.held_bytes,
      leased_slots=len(self._ledger.slots.leased),
      leased_pages=len(self._ledger.pages.leased),
      remembered_bytes=self._remembered.bytes,
      evictions=self.evictions,
      forgotten=self._remembered.forgotten,
    )

  def check(self) -> None:
    """Recomputes every count from scratch; for tests, O(everything).

    Raises:
      AssertionError: If something does not add up.
    """
    audit(self._forest, self._order.rule, self._pins)
    self._order.rule.check()
