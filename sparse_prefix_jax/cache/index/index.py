"""The prefix index: match, pin, reserve, grow, remember, evict, one budget.

It knows prefixes, numbers of slots and pages, and who needs them; the life of a
request is the store's (`cache/store.py`). What raises has changed nothing; but
what the rule raises when states come or go is raised when that is done.
"""

import itertools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from sparse_prefix_jax.placement import Features

from .budget import Budget, Lease
from .growth import check_growth, check_keys
from .results import Grown, Match, Pin, Renumbering
from .tree import Absence, Entry, Node, State, hold_path, release_path
from .view import IndexView


class PrefixIndex(IndexView):
  """Which prefixes are stored, and in which slots and pages.

  Every salt has a tree of its own over block keys: bytes of `token_blocks`, or
  any hashables, such as the hash ids of a trace. Keys are compared, never only
  their hashes. Everything costs O(path), and a look among n siblings O(log n).

  States are evicted alone, in the order of a rule. A page is kept exactly as
  long as a state or a pin at or below its node needs it. Entries are prompts
  that are remembered: they hold neither, but let overlaps be seen and carry
  what the placement knew; how much host memory they may take is bounded. A pin
  keeps a path and the state at its end. Not for several threads at once.

  Args:
    budget: What may be held.
    eviction: The rule, or its name, a key of `EVICTIONS`.
    block_size: Tokens of a block; only for keys that are not bytes.
    renew: Makes a rule where one fails that was given as it is.

  Raises:
    ValueError: If the rule is unknown or a block has less than one token.

  >>> index = PrefixIndex(Budget(1000, slot_bytes=100, page_bytes=10))
  >>> lease = index.reserve(slots=1, pages=2)
  >>> root = index.pin(None)
  >>> grown = index.grow(root, ["a", "b"], lease.pages, {2: lease.slots[0]})
  >>> index.unpin(grown.pin)
  >>> index.match(["a", "b", "c"]).resume_blocks, index.held_bytes
  (2, 120)
  """

  def use(self, match: Match) -> None:
    """Tells the rules that a request used what was matched."""
    if match.node and match.node.state:
      self._order.hit(match.node.state)
      match.node.state.hits += 1
    if match.deepest and match.deepest.latest:
      self._remembered.use(match.deepest.latest)

  def pin(self, node: Node | None, *, salt: bytes = b"") -> Pin:
    """Protects the path to a node and the state there, until `unpin`.

    A pin of None protects nothing and is where a new path begins.
    """
    pin = Pin(node, salt, node.state if node else None)
    if node:
      self._ledger.pages.pinned += hold_path(node, "pins")
    if pin.state:
      self._ledger.slots.pinned += pin.state.pins == 0
      pin.state.pins += 1
    self._pins.add(pin)
    return pin

  def unpin(self, pin: Pin) -> None:
    """Gives a pin back; pages that nobody needs any more are freed.

    Raises:
      ValueError: If the pin is not open (any more).
    """
    if pin not in self._pins:
      raise ValueError(f"the pin at depth {pin.depth} is not open.")
    self._pins.remove(pin)
    self._let_go(pin.state)
    if pin.node is None:
      return
    self._ledger.pages.pinned -= release_path(pin.node, "pins")
    self._forest.settle(pin.node)
    self._bound_memory()
    self._drop_leaving(pin.state)

  def spare_state(self, pin: Pin) -> Pin:
    """Keeps the path of a pin and lets the state at its end be evicted.

    Args:
      pin: Given back; a new one is returned.

    Raises:
      ValueError: If the pin is not open (any more).
    """
    if pin not in self._pins:
      raise ValueError(f"the pin at depth {pin.depth} is not open.")
    kept = Pin(pin.node, pin.salt, None)
    self._pins.remove(pin)
    self._let_go(pin.state)
    self._pins.add(kept)
    self._drop_leaving(pin.state)
    return kept

  def _let_go(self, state: State | None) -> None:
    """One pin less holds a state."""
    if state:
      state.pins -= 1
      self._ledger.slots.pinned -= state.pins == 0

  def _drop_leaving(self, state: State | None) -> None:
    """Drops a state that was taken back, once no pin holds it."""
    if state and state.leaving and state.alive and not state.pins:
      self.drop(state)

  def check_room(self, slots: int, pages: int, budget: Budget) -> None:
    """Raises CapacityError if another budget could not hold so many more."""
    self._ledger.require_possible(slots, pages, budget)

  def reserve(self, slots: int, pages: int) -> Lease:
    """Takes free slots and pages, evicting states in the rule's order.

    There is room then also for what the rule was offered and has not turned
    down.

    Returns:
      The leased numbers; they count as held until `free` or `grow`.

    Raises:
      ValueError: If a number is negative.
      CapacityError: If not even evicting every state would make enough room.
    """
    self._ledger.require_possible(slots, pages)
    has_room = self._ledger.has_room
    while not has_room(slots + self._order.offered, pages):
      short = self._ledger.shortage(slots + self._order.offered, pages)
      state = self._order.victim(short, self._forest.all_states)
      if state:
        self.drop(state)
        state.node.absence = Absence.EVICTED
        self.evictions += 1
        self._order.raise_failure()
    self._order.reconsider(lambda offered: has_room(slots + offered, pages))
    return self._ledger.lease(slots, pages)

  def withdraw(self, owner: int) -> None:
    """A sequence captures nothing more; no state is awaited of it.

    Args:
      owner: Its number.
    """
    with self._order.finishing():
      self._order.cancel(owner)

  def free(self, slots: Sequence[int] = (), pages: Sequence[int] = ()) -> None:
    """Gives leased numbers back.

    Raises:
      ValueError: If a number is not leased, or is named twice.
    """
    self._ledger.free(slots, pages)

  def grow(
    self,
    pin: Pin,
    keys: Sequence[Hashable],
    pages: Sequence[int],
    slots: Mapping[int, int],
  ) -> Grown:
    """Adds whole blocks and states below a pin, which moves to their end.

    Leased numbers pass into the tree's ownership. Where a node has a page or a
    state already it keeps its own, since the bits are equal, and the number
    that was to take its place is freed.

    Args:
      pin: Given back; a new one is returned.
      keys: Of the blocks after the pin's.
      pages: One leased page per key.
      slots: Leased slot by depth in blocks, from the pin's own depth on.

    Returns:
      The pin at the new end, and the tree's numbers of what is new.

    Raises:
      ValueError: If a number is not leased or named twice, or a depth is
        before the pin or after the end.
    """
    if pin not in self._pins:
      raise ValueError(f"the pin at depth {pin.depth} is not open.")
    check_growth(pin, keys, pages, slots, self._ledger)
    with self._order.finishing():
      return self._grow(pin, keys, pages, slots)

  def _grow(
    self,
    pin: Pin,
    keys: Sequence[Hashable],
    pages: Sequence[int],
    slots: Mapping[int, int],
  ) -> Grown:
    """Adds what was checked; see `grow`."""
    start = pin.node or self._forest.root(pin.salt)
    end = self._forest.attach(start, keys, pages) if keys else start
    self._place(end, slots)
    moved = self._move(pin, end if end.parent else None)
    new = list(itertools.islice(end.upwards(), len(keys)))[::-1]
    states = {node.depth: node.state for node in (*new, start)}
    self._forest.drop_bare_root(start)
    self._bound_memory()  # The first of a tenant has made a root.
    grown = Grown(
      pin=moved,
      pages=tuple(node.page for node in new),
      slots={d: s.number for d in slots if (s := states[d])},
    )
    self._drop_leaving(pin.state)
    return grown

  def _move(self, pin: Pin, end: Node | None) -> Pin:
    """Moves a pin down its path; only what is new is counted anew."""
    self._pins.remove(pin)
    pages = self._ledger.pages
    pages.pinned += hold_path(end, "pins") if end else 0
    pages.pinned -= release_path(pin.node, "pins") if pin.node else 0
    moved = Pin(end, pin.salt, end.state if end else None)
    for state, change in ((moved.state, 1), (pin.state, -1)):
      if state:
        self._ledger.slots.pinned -= state.pins > 0
        state.pins += change
        self._ledger.slots.pinned += state.pins > 0
    self._pins.add(moved)
    return moved

  def _place(self, end: Node, slots: Mapping[int, int]) -> None:
    """Stores states on the path to a node, the deepest last."""
    path = {node.depth: node for node in end.upwards()} if slots else {}
    for depth in sorted(slots):
      state = self._forest.place(path[depth], slots[depth])
      if state:
        self._order.add(state)

  def claim(self, pin: Pin, depths: Iterable[int]) -> dict[int, State]:
    """Claims the states that are stored at some depths of a pinned path.

    Returns:
      The states by depth, where there are any.
    """
    wanted = set(depths)
    path = pin.node.upwards() if pin.node and wanted else ()
    found = {n.depth: n.state for n in path if n.depth in wanted and n.state}
    for state in found.values():
      state.claims, state.leaving = state.claims + 1, False
    return found

  def refuse(self, pin: Pin, depths: Collection[int]) -> None:
    """Notes where somebody asked for a state and got none.

    Args:
      pin: At or below all of them.
      depths: In blocks; those that have a state, or had one, stay as they are.
    """
    path = pin.node.upwards() if pin.node and depths else ()
    for node in path:
      if node.depth in depths and not node.state and not node.absence:
        node.absence = Absence.NOT_ADMITTED

  def unclaim(self, states: Iterable[State]) -> None:
    """Takes claims back; a state that nobody claims goes with its last pin."""
    with self._order.finishing():
      for state in states:
        state.claims -= 1
        state.leaving = not state.claims
        self._drop_leaving(state)

  def demote(self, states: Iterable[State]) -> None:
    """Puts states on probation that are stored still and were never hit."""
    with self._order.finishing():
      for state in states:
        if state.alive and not state.hits:
          self._order.demote(state)

  def drop(self, state: State) -> None:
    """Removes a state that no pin holds, and pages that only it needed.

    Raises:
      ValueError: If it is not stored (any more), or a pin holds it.
    """
    node = state.node
    if not state.alive or state.pins:
      fault = "held by a pin" if state.alive else "not stored"
      raise ValueError(f"the state at depth {node.depth} is {fault}.")
    with self._order.finishing():
      self._order.remove(state)
      self._forest.displace(state)
      self._bound_memory()

  def remember(
    self,
    pin: Pin,
    tail: bytes,
    *,
    claims: Mapping[int, State] | None = None,
    features: Features | None = None,
  ) -> Entry:
    """Remembers a prompt whose whole blocks end at a pin.

    One that is remembered already is the same entry, with claims added.

    Args:
      pin: At its last whole block.
      tail: Key of the remaining tokens.
      claims: States that it asked for, by depth.
      features: What the placement knows of it.
    """
    check_keys((), tail)
    end = pin.node or self._forest.root(pin.salt)
    entry = end.ends.get(tail)
    if entry is None:
      entry = end.ends[tail] = Entry(end, pin.salt, tail)
      end.add_edge(tail)
    entry.count += 1
    entry.claims |= claims or {}
    entry.features = features or entry.features
    for node in end.upwards():
      node.latest = entry
    self._remembered.add(entry)
    self._bound_memory()
    return entry

  def share(self, entry: Entry) -> None:
    """A fork leaves the same entry as its source."""
    entry.count += 1

  def forget(self, entry: Entry) -> None:
    """One of the sequences that left an entry takes it back.

    The last one removes it; an entry that is gone already is no error.
    """
    if entry not in self._remembered:
      return
    entry.count -= 1
    if entry.count <= 0:
      self._remove(entry)

  def _remove(self, entry: Entry) -> None:
    """Takes an entry out of the tree and prunes what hung on it alone."""
    self._remembered.remove(entry)
    del entry.node.ends[entry.tail]
    entry.node.drop_edge(entry.tail)
    for node in entry.node.upwards():
      if node.latest is not entry:
        break  # A later one goes through it, and so through all those above.
      node.latest = None
    self._forest.settle(entry.node)

  def _bound_memory(self) -> None:
    """Forgets the entries used longest ago while they take too much."""
    while self._remembered.excess:
      self._remove(self._remembered.oldest())
      self._remembered.forgotten += 1

  def renumbering(self, slots: int, pages: int) -> Renumbering:
    """New numbers for what is held at or above the limits; a look."""
    return self._ledger.renumbering(slots, pages)

  def renumber(self, moved: Renumbering, slots: int, pages: int) -> None:
    """Takes the new numbers: the bytes have been copied there."""
    self._forest.renumber(moved)
    self._ledger.renumber(moved, slots, pages)

  def clear(self) -> None:
    """Drops all states that no pin holds and forgets all entries."""
    with self._order.finishing():
      for state in self._forest.states():
        if not state.pins:
          self.drop(state)
      for entry in tuple(self._remembered):
        self._remove(entry)

  def set_budget(self, budget: Budget) -> None:
    """Allows more or less, evicting until that is kept.

    Raises:
      CapacityError: If pins and leases alone are more; nothing has changed.
    """
    self._ledger.require_possible(0, 0, budget)
    before, self._ledger.budget = self._ledger.budget, budget
    try:
      self.free(*self.reserve(0, 0))
    except BaseException:
      self._ledger.budget = before
      raise
