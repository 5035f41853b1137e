"""The prefix tree: one node per distinct prefix of whole blocks.

A node holds the page of its last block exactly as long as a state checkpoint or
a pin at or below it needs that page. Without them it keeps its key alone, so
that the overlap of later prompts is still seen, as long as an entry is
remembered at or below it. Nothing here recurses: a prompt may have thousands of
blocks.
"""

import bisect
import dataclasses
import enum
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence

from sparse_prefix_jax.placement import Features

from .chain import Chain, Need, reach


class Absence(enum.IntEnum):
  """Why a node has no state, if it has none."""

  NOT_PLACED = 0
  NOT_ADMITTED = 1
  EVICTED = 2


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class State:
  """A state checkpoint at a node.

  Attributes:
    number: Its slot in the pools.
    node: The prefix that it is the carry after.
    pins: Open pins that hold it.
    claims: Running or ended sequences that want it kept and have not taken
      that back; nobody's claim keeps it from being evicted.
    hits: Requests that resumed from it.
    leaving: Whether the last claim was taken back while a pin held it.
  """

  number: int
  node: "Node"
  pins: int = 0
  claims: int = 0
  hits: int = 0
  leaving: bool = False

  @property
  def alive(self) -> bool:
    """Whether it is still stored."""
    return self.node.state is self


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Node:
  """A prefix of `depth` whole blocks; a root has depth 0 and no page.

  Attributes:
    key: The last block's key.
    parent: The prefix one block shorter; None for a root.
    depth: Blocks of the prefix.
    page: Number of the last block's page, -1 where nobody needs it.
    state: The state checkpoint after the prefix, if one is kept.
    children: Prefixes one block longer, by key.
    first: The oldest of them, None where there are none: most nodes have one
      child, and comparing its key takes less than hashing another.
    ends: Entries without a further whole block, by tail.
    latest: The entry remembered last through here, None once it is gone.
    sorted_edges: What `fringe` returns, once somebody has asked.
    absence: Why there is no state, where there is none.
    chain: The nodes among which it was added; a root has none.
  """

  key: Hashable = None
  parent: "Node | None" = None
  depth: int = 0
  page: int = -1
  state: State | None = None
  children: "dict[Hashable, Node]" = dataclasses.field(default_factory=dict)
  first: "Node | None" = None
  ends: "dict[bytes, Entry]" = dataclasses.field(default_factory=dict)
  latest: "Entry | None" = None
  sorted_edges: list[bytes] | None = None
  absence: Absence = Absence.NOT_PLACED
  chain: Chain | None = None

  @property
  def needs_page(self) -> bool:
    """Whether a pin or a state at or below it needs its page."""
    chain = self.chain
    return chain is not None and self.depth - chain.depth < chain.needed

  @property
  def above_states(self) -> bool:
    """Whether a state is stored below it."""
    chain = self.chain
    if chain is None:
      return False
    first = bisect.bisect_left(chain.states, self.depth - chain.depth)
    return len(chain.states) - first > bool(self.state)

  @property
  def needed(self) -> bool:
    """Whether anything still hangs on the node."""
    return bool(self.children) or bool(self.ends) or self.needs_page

  @property
  def fringe(self) -> list[bytes]:
    """Sorted keys of the children and tails that end here, bytes only.

    Sorted when it is first asked for, and kept in order from then on.
    """
    if self.sorted_edges is None:
      keys = (key for key in self.children if isinstance(key, bytes))
      self.sorted_edges = sorted([*keys, *self.ends])
    return self.sorted_edges

  def add_edge(self, key: Hashable) -> None:
    """Notes a new child's key or a new tail in the sorted fringe."""
    if self.sorted_edges is not None and isinstance(key, bytes):
      bisect.insort(self.sorted_edges, key)

  def drop_edge(self, key: Hashable) -> None:
    """Takes a key or tail out of the sorted fringe."""
    if self.sorted_edges is not None and isinstance(key, bytes):
      del self.sorted_edges[bisect.bisect_left(self.sorted_edges, key)]

  def upwards(self) -> "Iterator[Node]":
    """The node and its ancestors below the root, deepest first."""
    node = self
    while node.parent is not None:
      yield node
      node = node.parent

  def at_depth(self, depth: int) -> "Node":
    """The ancestor, or the node itself, at a depth in blocks."""
    node = self
    while node.depth > depth and node.parent is not None:
      node = node.parent
    return node


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Entry:
  """A remembered prompt; compared by identity.

  Attributes:
    node: Its last whole block (a root if it has none).
    salt: The tenant that it belongs to.
    tail: Key of the tokens after the last whole block.
    count: How many sequences left it here.
    claims: The states that it asked for, by depth in blocks; some may be gone.
    features: What the placement knows of it, None where nobody said.
    expected_lost: Tokens that the next prompt which matches it is expected to
      compute again of what both share, None where nobody said.
  """

  node: Node
  salt: bytes
  tail: bytes
  count: int = 0
  claims: dict[int, State] = dataclasses.field(default_factory=dict)
  features: Features | None = None
  expected_lost: float | None = None

  @property
  def depth(self) -> int:
    """Whole blocks of the entry."""
    return self.node.depth

  @property
  def blocks(self) -> tuple[Hashable, ...]:
    """Keys of the whole blocks."""
    return tuple(node.key for node in self.node.upwards())[::-1]

  @property
  def states(self) -> tuple[int, ...]:
    """Depths in blocks at which states that it claims are stored now."""
    return tuple(sorted(d for d, s in self.claims.items() if s.alive))

  def __repr__(self) -> str:
    """Short enough for a message."""
    return f"Entry({self.depth} blocks, {len(self.tail)} bytes of tail)"


def walk(root: Node | None, blocks: Sequence[Hashable]) -> list[Node]:
  """Nodes of the deepest known prefix of `blocks`, shallowest first.

  >>> root = Node()
  >>> _ = extend(root, ["a", "b"], [7, 8])
  >>> [node.page for node in walk(root, ["a", "b", "c"])]
  [7, 8]
  """
  path: list[Node] = []
  if root is None:
    return path
  while len(path) < len(blocks):
    key, child = blocks[len(path)], root.first
    if child is None:
      break
    if child.key != key:
      child = root.children.get(key)
      if child is None:
        break
    assert child.chain is not None
    path += child.chain.shared(child, blocks, len(path))
    root = path[-1]
  return path


def pieces_of(path: Sequence[Node]) -> Iterator[tuple[Chain, slice]]:
  """Cuts nodes behind each other into parts of chains.

  Args:
    path: As of `walk`.

  Yields:
    Chains, and which of their nodes are on the path.
  """
  at = 0
  while at < len(path):
    chain = path[at].chain
    assert chain is not None
    start = path[at].depth - chain.depth
    low, high = 1, min(len(path) - at, len(chain.nodes) - start)
    while low < high:  # A path that has left a chain does not come back.
      middle = (low + high + 1) // 2
      if path[at + middle - 1] is chain.nodes[start + middle - 1]:
        low = middle
      else:
        high = middle - 1
    yield chain, slice(start, start + low)
    at += low


def keys_along(path: Sequence[Node]) -> list[Hashable]:
  """The keys of nodes behind each other.

  Args:
    path: As of `walk`.

  >>> keys_along(extend(Node(), "ab", [7, 8]))
  ['a', 'b']
  """
  keys: list[Hashable] = []
  for chain, part in pieces_of(path):
    keys += chain.keys[part]
  return keys


def hashes_along(path: Sequence[Node]) -> "array[int]":
  """The hashes of these keys.

  Args:
    path: As of `walk`.

  >>> path = extend(Node(), "ab", [7, 8])
  >>> hashes_along(path).tolist() == [hash("a"), hash("b")]
  True
  """
  found = array("q")
  for chain, part in pieces_of(path):
    found += chain.hashes[part]
  return found


def extend(
  node: Node, keys: Iterable[Hashable], pages: Iterable[int]
) -> list[Node]:
  """Adds one node per key below `node`, each the child of the one before."""
  path: list[Node] = []
  chain = node.chain
  if chain is None or chain.nodes[-1] is not node:
    chain = Chain(node.depth + 1)
  for key, page in zip(keys, pages):
    child = Node(key=key, parent=node, depth=node.depth + 1, page=page)
    child.chain = chain
    chain.add(child)
    node.children[key] = child
    node.first = node.first or child
    node.add_edge(key)
    path.append(child)
    node = child
  return path


def prune(node: Node) -> None:
  """Takes a node without children out of its parent.

  >>> root = Node()
  >>> path = extend(root, "ab", [7, 8])
  >>> prune(path[1])
  >>> walk(root, "ab") == path[:1]
  True
  """
  parent = node.parent
  assert parent is not None
  del parent.children[node.key]
  if parent.first is node:
    parent.first = next(iter(parent.children.values()), None)
  parent.drop_edge(node.key)
  if node.chain:
    node.chain.drop_last()


def hold_path(node: Node, need: Need) -> int:
  """Notes that a pin or a state needs a node, and with it the path to it.

  Args:
    node: Where it is.
    need: Which of them.

  Returns:
    How many nodes of the path none of its kind needed before.

  >>> path = extend(Node(), "ab", [7, 8])
  >>> [hold_path(path[place], "pins") for place in (0, 1, 1)]
  [1, 1, 0]
  """
  count = 0
  above: Node | None = node
  while above is not None and (chain := above.chain) is not None:
    ends, place = getattr(chain, need), above.depth - chain.depth
    at = bisect.bisect_left(ends, place)
    setattr(chain, need, (*ends[:at], place, *ends[at:]))
    count += max(0, place + 1 - reach(ends))
    if ends:
      break  # Those above count this chain already.
    above = chain.nodes[0].parent
  return count


def release_path(node: Node, need: Need) -> int:
  """Takes back what `hold_path` noted.

  Args:
    node: Where it was.
    need: As it was then.

  Returns:
    How many nodes of the path none of its kind needs any more.
  """
  count = 0
  above: Node | None = node
  while above is not None and (chain := above.chain) is not None:
    ends, place = getattr(chain, need), above.depth - chain.depth
    at = bisect.bisect_left(ends, place)
    left = ends[:at] + ends[at + 1 :]
    setattr(chain, need, left)
    count += max(0, place + 1 - reach(left))
    if left:
      break
    above = chain.nodes[0].parent
  return count


def nodes_below(root: Node) -> Iterator[Node]:
  """Every node below a root, in no particular order."""
  waiting = list(root.children.values())
  while waiting:
    node = waiting.pop()
    yield node
    waiting.extend(node.children.values())
