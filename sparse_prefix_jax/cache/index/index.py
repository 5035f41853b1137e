"""The prefix index: match, pin, reserve, insert, evict, under one budget.

The life of a request (DESIGN.md section 2): `match` finds what is stored of
its prompt, `pin` protects what it resumes from, `reserve` takes slots and
pages for what it will capture, and `insert` passes them into the tree. What
raises has changed nothing.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from .audit import audit
from .budget import Budget, Lease
from .insertion import Insertion, plan_insertion
from .ledger import Ledger
from .matching import describe_match
from .policies import make_policy
from .results import Inserted, Match, Pin, Stats
from .tree import Entry, Node, StateSlot, extend, prune, walk


class PrefixIndex:
  """Which prefixes are stored, and in which slots and pages.

  Every salt has a tree of its own over block keys: bytes of `token_blocks`, or
  any hashables, such as the hash ids of a trace. Keys are compared, never only
  their hashes. `match`, `pin` and `insert` cost O(path), and one O(log n) look
  among n siblings; an eviction costs O(path of the entry).

  An entry is a stored prompt. It keeps alive the pages of its whole blocks and
  the slots that it claims. Entries without a whole block are stored as well,
  for exact overlaps; they hold nothing but their tail. `Budget.entries` bounds
  how many there are. A pin keeps alive a path and the slot at its end, whatever
  becomes of the entries. Not for several threads at once.

  Args:
    budget: what may be held.
    eviction: name of the policy, a key of `POLICIES`.
    block_size: tokens of a block; only for keys that are not bytes.

  Raises:
    ValueError: an unknown policy or a block size below 1.

  >>> index = PrefixIndex(Budget(1000, slot_bytes=100, page_bytes=10))
  >>> lease = index.reserve(slots=1, pages=2)
  >>> done = index.insert(["a", "b"], b"", lease.pages, {2: lease.slots[0]})
  >>> index.match(["a", "b", "c"]).resume_blocks, index.held_bytes
  (2, 120)
  """

  def __init__(
    self, budget: Budget, eviction: str = "lru", *, block_size: int = 1
  ) -> None:
    """Starts empty; see the class."""
    if block_size < 1:
      raise ValueError(f"block_size must be at least 1, got {block_size}.")
    self.evictions = 0
    self._block_size = block_size
    self._policy = make_policy(eviction)
    self._ledger = Ledger(budget)
    self._roots: dict[bytes, Node] = {}
    self._pins: set[Pin] = set()

  def match(
    self,
    blocks: Sequence[Hashable],
    tail: bytes = b"",
    *,
    salt: bytes = b"",
    limit: int | None = None,
    touch: bool = True,
  ) -> Match:
    """Finds the longest stored prefix of a prompt and where to resume.

    With `touch` the policy learns of it: the entry that claimed the slot last
    counts as used, or where no slot can be resumed from, the entry inserted
    last through the deepest matched node, if it is still stored. One entry,
    not all that share the slot: it keeps alive all that was used, while what
    only the others hold ages, and the cost does not grow with their number.

    Args:
      blocks: keys of the whole blocks of the prompt.
      tail: key of its remaining tokens.
      salt: the tenant; nothing is shared between salts.
      limit: deepest block count to resume at; None: no limit.
      touch: whether the match counts as a use.

    Returns:
      the match; see its attributes.

    Raises:
      ValueError: limit is negative.
    """
    if limit is not None and limit < 0:
      raise ValueError(f"limit must not be negative, got {limit}.")
    root = self._roots.get(salt)
    path = walk(root, blocks)
    match = describe_match(
      root, path, blocks, tail, limit=limit, block_size=self._block_size
    )
    if touch and path:
      self._touch(path, match.resume_blocks)
    return match

  def _touch(self, path: list[Node], resume: int) -> None:
    """Tells the policy which entry a match used, if one is stored."""
    state = path[resume - 1].slot if resume else None
    entry = next(reversed(state.claims), None) if state else path[-1].latest
    if entry is not None:
      self._policy.touch(entry)

  def pin(
    self, blocks: Sequence[Hashable], depth: int, *, salt: bytes = b""
  ) -> Pin:
    """Protects the pages of the first `depth` blocks and the slot there.

    Until `unpin` they are neither freed nor used anew, whatever entries are
    evicted, and a match still finds them.

    Raises:
      ValueError: depth is negative or deeper than what is stored.
    """
    stored = walk(self._roots.get(salt), blocks)
    if not 0 <= depth <= len(stored):
      raise ValueError(
        f"depth to pin must be between 0 and the {len(stored)} blocks that are "
        f"stored of this prompt, got {depth}."
      )
    path = stored[:depth]
    node = path[-1] if path else None
    pin = Pin(node, salt, holds_slot=bool(node and node.slot))
    for held in path:
      self._ledger.pages.pinned += held.pins == 0
      held.pins += 1
    if node and node.slot:
      self._ledger.slots.pinned += node.slot.pins == 0
      node.slot.pins += 1
    self._pins.add(pin)
    return pin

  def unpin(self, pin: Pin) -> None:
    """Gives a pin back; what nobody needs any more is freed.

    Raises:
      ValueError: the pin is not open (any more).
    """
    if pin not in self._pins:
      raise ValueError(f"the pin at depth {pin.depth} is not open.")
    self._pins.remove(pin)
    if pin.node is None:
      return
    if pin.holds_slot and pin.node.slot:
      pin.node.slot.pins -= 1
      self._ledger.slots.pinned -= pin.node.slot.pins == 0
      self._drop_slot_if_free(pin.node)
    for node in pin.node.upwards():
      node.pins -= 1
      self._ledger.pages.pinned -= node.pins == 0
    self._prune(pin.node, pin.salt)

  def reserve(self, slots: int, pages: int) -> Lease:
    """Takes free slots and pages, evicting entries in the policy's order.

    An entry is passed over while its last block is pinned and no other entry
    ends there, unless all others were not enough: it would free no page.

    Returns:
      the leased numbers; they count as held until `free` or `insert`.

    Raises:
      ValueError: a negative number.
      CapacityError: not even evicting every entry would make enough room.
    """
    self._ledger.require_possible(slots, pages)
    while not self._ledger.has_room(slots, pages):
      self._evict_next()
    return self._ledger.lease(slots, pages)

  def free(self, slots: Sequence[int] = (), pages: Sequence[int] = ()) -> None:
    """Gives leased numbers back.

    Raises:
      ValueError: a number is not leased, or is named twice.
    """
    self._ledger.free(slots, pages)

  def unheld(self) -> Lease:
    """Slots and pages that nobody holds, of those that exist physically.

    Raises:
      ValueError: the budget does not say how many exist.
    """
    return self._ledger.unheld()

  def _evict_next(self, newest: Entry | None = None) -> None:
    """Drops the policy's next victim, which is never the newest."""
    self._remove(self._policy.victim(lambda e: e is newest or _in_use(e)))
    self.evictions += 1

  def insert(
    self,
    blocks: Sequence[Hashable],
    tail: bytes,
    pages: Sequence[int],
    slots: Mapping[int, int],
    *,
    salt: bytes = b"",
    claim: Iterable[int] = (),
    replace: Entry | None = None,
  ) -> Inserted:
    """Stores a prompt; the leased numbers pass into the tree's ownership.

    Where a node or its slot exists already, it stays as it is, and a leased
    number that was to take its place is freed. A prompt that is stored already
    (same blocks, tail and salt) is the same entry: it becomes the newest and
    claims the new slots on top of its own. If `Budget.entries` are stored, the
    policy's next victim goes.

    Args:
      blocks: keys of the whole blocks.
      tail: key of the remaining tokens.
      pages: one page number per block: the tree's own, or a leased one.
      slots: slot number by depth in blocks: the tree's own, or a leased one.
      salt: the tenant.
      claim: depths whose slot is to be kept alive by this entry too; where
        there is none, nothing happens.
      replace: an entry that this one supersedes; it goes in the same step,
        after the claims. One that was evicted meanwhile is no error. If it is
        the same prompt, it keeps no claim but the new ones.

    Returns:
      the entry and the canonical numbers.

    Raises:
      ValueError: keys of different lengths, a page or slot that is neither
        leased nor the tree's own there, one named twice, a depth outside of
        1..len(blocks), or as many pages as not blocks.
    """
    path = walk(self._roots.get(salt), blocks)
    plan = plan_insertion(
      path, blocks, tail, pages, slots, tuple(claim), self._ledger
    )
    end = self._attach(path, blocks, pages, salt)
    entry = end.ends.get(tail) or Entry(end, salt, tail)
    if entry is replace:
      self._release_claims(entry, keep=plan.depths)
    self._store(entry, plan)
    if replace is not None and replace is not entry and replace in self._policy:
      self._remove(replace)
    while len(self) > self.budget.entries:
      self._evict_next(newest=entry)
    self._ledger.slots.give_back(plan.spare_slots)
    self._ledger.pages.give_back(plan.spare_pages)
    return Inserted(
      entry=entry,
      pages=tuple(node.page for node in end.upwards())[::-1],
      slots={d: s.number for d in plan.depths if (s := entry.claims[d].slot)},
      freed_pages=plan.spare_pages,
      freed_slots=plan.spare_slots,
    )

  def _attach(
    self,
    path: list[Node],
    blocks: Sequence[Hashable],
    pages: Sequence[int],
    salt: bytes,
  ) -> Node:
    """Creates the missing nodes and returns the end of the path."""
    root = self._roots.setdefault(salt, Node(key=salt))
    depth = len(path)
    fresh = [self._ledger.pages.adopt(page) for page in pages[depth:]]
    added = extend(path[-1] if path else root, blocks[depth:], fresh)
    return (added or path or [root])[-1]

  def _store(self, entry: Entry, plan: Insertion) -> None:
    """Makes the entry the newest, with its slots and claims."""
    end = entry.node
    if entry.tail not in end.ends:
      end.ends[entry.tail] = entry
      end.add_edge(entry.tail)
    for node in end.upwards():
      node.latest = entry
      if node.depth in plan.new_slots:
        node.slot = StateSlot(
          self._ledger.slots.adopt(plan.new_slots[node.depth])
        )
      if node.depth in plan.depths and node.slot:
        node.slot.claims[entry] = node.slot.claims.pop(entry, None)
        entry.claims[node.depth] = node
    self._policy.add(entry)

  def evict(self, entry: Entry) -> None:
    """Removes one entry; what is pinned stays.

    Raises:
      ValueError: the entry is not stored (any more).
    """
    if entry not in self._policy:
      raise ValueError(f"{entry!r} is not stored.")
    self._remove(entry)

  def clear(self) -> None:
    """Removes all entries; pins and leases stay."""
    for entry in self.entries:
      self._remove(entry)

  def _remove(self, entry: Entry) -> None:
    """Takes an entry out of the policy and the tree, and frees what it held."""
    self._policy.remove(entry)
    self._release_claims(entry, keep=())
    del entry.node.ends[entry.tail]
    entry.node.drop_edge(entry.tail)
    for node in entry.node.upwards():
      if node.latest is entry:
        node.latest = None
    self._prune(entry.node, entry.salt)

  def _release_claims(self, entry: Entry, keep: Iterable[int]) -> None:
    """Gives up the entry's claims but those at the depths to keep."""
    for depth in entry.claims.keys() - set(keep):
      node = entry.claims.pop(depth)
      if node.slot:
        del node.slot.claims[entry]
      self._drop_slot_if_free(node)

  def _drop_slot_if_free(self, node: Node) -> None:
    """Frees the node's slot unless it is claimed or pinned."""
    if node.slot and not node.slot.needed:
      self._ledger.slots.give_back([node.slot.number])
      node.slot = None

  def _prune(self, node: Node, salt: bytes) -> None:
    """Removes what nobody needs from a node upwards, and an empty root."""
    pages, top = prune(node)
    self._ledger.pages.give_back(pages)
    if top.parent is None and not top.needed:
      del self._roots[salt]

  def __len__(self) -> int:
    """How many entries are stored."""
    return len(self._policy)

  def __contains__(self, entry: object) -> bool:
    """Whether an entry is (still) stored."""
    return entry in self._policy

  @property
  def entries(self) -> tuple[Entry, ...]:
    """The entries in the policy's order, the next victim first."""
    return tuple(self._policy)

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
    """Bytes of what is held; at most `budget.capacity_bytes`."""
    return self.budget.bytes_of(self.held_slots, self.held_pages)

  @property
  def stats(self) -> Stats:
    """Counts for a report."""
    return Stats(
      entries=len(self),
      pins=len(self._pins),
      held_slots=self.held_slots,
      held_pages=self.held_pages,
      held_bytes=self.held_bytes,
      leased_slots=len(self._ledger.slots.leased),
      leased_pages=len(self._ledger.pages.leased),
      evictions=self.evictions,
    )

  def check(self) -> None:
    """Recomputes every count from scratch; for tests, O(everything).

    Raises:
      AssertionError: something does not add up.
    """
    audit(self._ledger, self._roots, self.entries, self._pins)


def _in_use(entry: Entry) -> bool:
  """Whether the entry is the last one to stand for a pinned node."""
  return entry.node.pins > 0 and len(entry.node.ends) == 1
