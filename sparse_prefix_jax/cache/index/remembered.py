"""Host memory of what is only remembered, counted and bounded.

Entries, and nodes whose page nobody needs any more, cost no device memory, so
no capacity bounds them: they are counted in bytes of the host, and the least
recently seen entries are forgotten first.
"""

import collections
from collections.abc import Hashable, Iterator, Sequence

from .tree import Entry, Node

NODE_BYTES = 700
"""Of a node, its dictionaries and its place in its parent's, without its key
(measured with CPython 3.11)."""

ENTRY_BYTES = 560
"""Of an entry, its claims, features and place in the order, without its tail
(measured likewise)."""

_HASHED_KEY_BYTES = 32


def key_bytes(key: Hashable) -> int:
  """Bytes of a block's key; of a hashed one, a number's.

  >>> key_bytes(b"abcd")
  37
  """
  return 33 + len(key) if isinstance(key, bytes) else _HASHED_KEY_BYTES


def node_bytes(node: Node) -> int:
  """Bytes of a node that holds no page."""
  return NODE_BYTES + key_bytes(node.key)


def entry_bytes(entry: Entry) -> int:
  """Bytes of an entry; its tail stands in a dictionary and in the fringe."""
  return ENTRY_BYTES + key_bytes(entry.tail)


class Remembered:
  """The entries in the order of their last use, and the bytes of all of it.

  Attributes:
    limit: Bytes that entries and nodes without a page may take.
    bytes: What they take.
    forgotten: How many entries were dropped because of the limit.
  """

  def __init__(self, limit: int) -> None:
    """Starts empty."""
    self.limit = limit
    self.bytes = 0
    self.forgotten = 0
    self._order: collections.OrderedDict[Entry, None] = (
      collections.OrderedDict()
    )

  def add(self, entry: Entry) -> None:
    """Makes an entry, new or not, the one used last."""
    if entry not in self._order:
      self.bytes += entry_bytes(entry)
    self._order[entry] = None
    self._order.move_to_end(entry)

  def use(self, entry: Entry) -> None:
    """Makes a known entry the one used last."""
    self._order.move_to_end(entry)

  def remove(self, entry: Entry) -> None:
    """Forgets an entry; KeyError if it is not known."""
    del self._order[entry]
    self.bytes -= entry_bytes(entry)

  def add_node(self, node: Node) -> None:
    """Counts a node that has lost its page."""
    self.bytes += node_bytes(node)

  def add_keys(self, keys: Sequence[Hashable]) -> None:
    """Counts nodes that have lost their pages, by their keys.

    Args:
      keys: One of every node.
    """
    sizes = [len(key) for key in keys if isinstance(key, bytes)]
    hashed = len(keys) - len(sizes)
    self.bytes += NODE_BYTES * len(keys) + _HASHED_KEY_BYTES * hashed
    self.bytes += key_bytes(b"") * len(sizes) + sum(sizes)

  def remove_node(self, node: Node) -> None:
    """Counts a node no more: it got a page again, or is gone."""
    self.bytes -= node_bytes(node)

  @property
  def excess(self) -> bool:
    """Whether an entry has to be forgotten."""
    return self.bytes > self.limit and bool(self._order)

  def oldest(self) -> Entry:
    """The entry used longest ago; there must be one."""
    return next(iter(self._order))

  def __iter__(self) -> Iterator[Entry]:
    """The entries, the one used longest ago first."""
    return iter(self._order)

  def __len__(self) -> int:
    """How many entries there are."""
    return len(self._order)

  def __contains__(self, entry: object) -> bool:
    """Whether an entry is known (still)."""
    return entry in self._order
