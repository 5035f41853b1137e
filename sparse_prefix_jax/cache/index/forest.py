"""One tree per salt, with the ledger of what its nodes hold.

Only what keeps the two in step stands here: who owns a page or a slot, and when
a node loses its page or goes.
"""

import collections
from collections.abc import Hashable, Sequence

from .ledger import Ledger
from .remembered import Remembered
from .results import Renumbering
from .tree import (
  Absence,
  Node,
  State,
  extend,
  hold_path,
  nodes_below,
  prune,
  release_path,
  walk,
)


class Forest:
  """The trees of all salts.

  Attributes:
    roots: The root of every salt that has anything; its key is the salt.
    ledger: Which numbers are free, leased or owned by the trees.
    remembered: Counts nodes without a page.
    beginnings: How many trees have a first block, by its key.
    all_states: All states of the trees.
  """

  def __init__(self, ledger: Ledger, remembered: Remembered) -> None:
    """Starts without trees."""
    self.roots: dict[bytes, Node] = {}
    self.ledger = ledger
    self.remembered = remembered
    self.beginnings: collections.Counter[Hashable] = collections.Counter()
    self.all_states: set[State] = set()

  def root(self, salt: bytes) -> Node:
    """The root of a salt, made if there is none."""
    if salt not in self.roots:
      self.roots[salt] = root = Node(key=salt)
      self.remembered.add_node(root)
    return self.roots[salt]

  def drop_bare_root(self, node: Node) -> None:
    """Forgets a salt of which nothing is left."""
    if node.parent is not None or node.needed:
      return
    if isinstance(node.key, bytes) and self.roots.pop(node.key, None):
      self.remembered.remove_node(node)

  def attach(
    self, start: Node, keys: Sequence[Hashable], pages: Sequence[int]
  ) -> Node:
    """Gives known nodes their pages and creates the others.

    Until the caller pins the end or stores a state there, nobody needs the
    pages.

    Args:
      start: The node below which the path goes on.
      keys: Of the blocks, at least one.
      pages: A leased number per block; freed where the node has a page.

    Returns:
      The end of the path.
    """
    path = walk(start, keys)
    for node, page in zip(path, pages):
      if node.page >= 0:
        self.ledger.pages.give_back([page])
      else:
        node.page = self.ledger.pages.adopt(page)
        self.remembered.remove_node(node)
    depth = len(path)
    if start.parent is None and not path:
      self.beginnings[keys[0]] += 1
    fresh = [self.ledger.pages.adopt(page) for page in pages[depth:]]
    added = extend(path[-1] if path else start, keys[depth:], fresh)
    return (added or path)[-1]

  def place(self, node: Node, slot: int) -> State | None:
    """Stores a state at a node.

    Returns:
      The state; None if there was one, and then the leased slot is freed.
    """
    if node.state:
      self.ledger.slots.give_back([slot])
      return None
    node.state = State(self.ledger.slots.adopt(slot), node)
    node.absence = Absence.NOT_PLACED
    self.all_states.add(node.state)
    hold_path(node, "states")
    return node.state

  def displace(self, state: State) -> None:
    """Removes a state and what only it needed."""
    node = state.node
    node.state = None
    self.all_states.discard(state)
    self.ledger.slots.give_back([state.number])
    release_path(node, "states")
    self.settle(node)

  def states(self) -> list[State]:
    """All stored states, those above others first."""
    return sorted(self.all_states, key=lambda s: (s.node.depth, s.number))

  def renumber(self, moved: Renumbering) -> None:
    """Puts new numbers in the place of old ones, wherever a tree has them."""
    slots, pages = moved.slots, moved.pages
    for root in self.roots.values():
      for node in nodes_below(root):
        node.page = pages.get(node.page, node.page)
        if node.state:
          number = node.state.number
          node.state.number = slots.get(number, number)

  def settle(self, node: Node) -> None:
    """From a node upwards: frees pages nobody needs, removes bare nodes."""
    freed: list[int] = []
    bare: list[Hashable] = []
    # A long way may end here: what is counted is counted once for all of it.
    chain, needed_to = None, 0
    while (parent := node.parent) is not None:
      if node.chain is not chain:
        chain = node.chain
        needed_to = chain.depth + chain.needed if chain else 0
      if node.depth < needed_to:
        break
      if node.page >= 0:
        freed.append(node.page)
        bare.append(node.key)
        node.page = -1
      if not node.children and not node.ends:
        prune(node)
        self.remembered.remove_node(node)
        if parent.parent is None:
          self._end(node.key)
      node = parent
    self.ledger.pages.give_back(freed)
    self.remembered.add_keys(bare)
    self.drop_bare_root(node)

  def _end(self, key: Hashable) -> None:
    """One tree less begins with a block."""
    self.beginnings[key] -= 1
    if not self.beginnings[key]:
      del self.beginnings[key]
