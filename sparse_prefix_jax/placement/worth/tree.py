"""All prompts of the past, compressed to the candidates on them: `Tree`.

Every end of a prompt and every place where one left another is a candidate, so
the blocks between two neighbouring candidates are a chain without branches: one
edge with the keys of its blocks. Finding how far a prompt is known takes one
comparison per edge, and a new candidate within an edge cuts it in two.

Of a key its hash is remembered, 64 bits, and of an edge the bytes of them all:
the objects of a long way would lie anywhere in memory.
"""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from sparse_prefix_jax.placement.worth import pages
from sparse_prefix_jax.placement.worth.table import ROOT, Table

KEY_BYTES = 8
"""Bytes of a key."""

Keys: TypeAlias = Sequence[Hashable] | Int64[np.ndarray, "n"]
"""One per whole block of a prompt: anything that can be hashed, or hashes."""


def hashes(keys: Keys) -> Int64[np.ndarray, "n"]:
  """Returns the hash of every key, 64 bits; of hashes, themselves.

  They are of this process, and two keys may have one: they are learned from,
  and nothing is ever resumed by them.

  Args:
    keys: One per block.
  """
  if isinstance(keys, np.ndarray):
    return keys.astype(np.int64, copy=False)
  return np.fromiter(map(hash, keys), np.int64, len(keys))


@dataclass
class Way:
  """The way of a prompt through the tree.

  Attributes:
    keys: Hashes, one per whole block.
    packed: Their bytes.
    matched: How many leading blocks an earlier prompt had, m.
    rows: The candidates on it, the shallow ones first.
    depths: Their depths.
    length: Blocks of the last prompt that went through block `matched`; 0 where
      nothing matched.
    first_number: The number that the node after `matched` has, or will have.
    changes: What `Tree.changes` was when it was found.
  """

  keys: Int64[np.ndarray, "n"]
  packed: bytes
  matched: int
  rows: list[int]
  depths: list[int]
  length: int
  first_number: int
  changes: int

  def row_at(self, depth: int) -> int | None:
    """Returns the candidate at a depth, None where there is none.

    Args:
      depth: Blocks, from 1.
    """
    place = bisect_left(self.depths, depth)
    known = place < len(self.depths) and self.depths[place] == depth
    return self.rows[place] if known else None

  def between(self, start: int, stop: int) -> bytes:
    """Returns the packed keys of some of its blocks.

    Args:
      start: Blocks before them.
      stop: Blocks before what follows them.
    """
    return self.packed[start * KEY_BYTES : stop * KEY_BYTES]


class Tree:
  """A radix tree over the rows of a table.

  Attributes:
    remembered_blocks: Blocks that are remembered, each once.
    changes: How many prompts have changed it, or candidates were removed.

  >>> table = Table()
  >>> tree = Tree(table)
  >>> way = tree.walk("abcd")
  >>> end = tree.add(way, 4)
  >>> tree.finish(way)
  >>> tree.walk("abx").matched
  2
  """

  def __init__(self, table: Table) -> None:
    """Starts with the root alone.

    Args:
      table: Its columns of structure are the tree's to change.
    """
    self._table = table
    self._edges = [b""]  # By rows, as the next.
    # The child that was gone to last, which most prompts go to again.
    self._favourite = [ROOT]
    self._below: dict[tuple[int, bytes], int] = {}
    self._numbers = 0
    self.remembered_blocks = self.changes = 0

  def walk(self, keys: Keys) -> Way:
    """Finds a prompt in the tree; a look, nothing changes.

    Args:
      keys: One per whole block.

    Returns:
      Its way, as far as it is known.
    """
    keys = hashes(keys)
    packed, at, row, last = keys.tobytes(), 0, ROOT, ROOT
    rows: list[int] = []
    depths: list[int] = []
    while at < len(packed):
      child = self._favourite[row]
      edge = self._edges[child]
      if child == ROOT or not packed.startswith(edge, at):
        child = self._below.get((row, packed[at : at + KEY_BYTES]))
        if child is None:
          break
        edge = self._edges[child]
        if not packed.startswith(edge, at):
          at, last = at + _common(edge, packed[at : at + len(edge)]), child
          break
      at, last = at + len(edge), child
      row = child
      rows.append(row)
      depths.append(at // KEY_BYTES)
    length = int(self._table.length[last])
    number, matched = self._numbers + 1, at // KEY_BYTES
    return Way(
      keys, packed, matched, rows, depths, length, number, self.changes
    )

  def add(self, way: Way, depth: int) -> int:
    """Makes a candidate; the way then has it.

    Candidates beyond `way.matched` must be made in order of depth, after one at
    `way.matched`, unless that is 0 or the whole way.

    Args:
      way: What `walk` gave for the prompt, nothing else having changed since.
      depth: Blocks before it, from 1; there is no candidate yet.

    Returns:
      Its row, with the columns of structure filled in.
    """
    table, place = self._table, bisect_left(way.depths, depth)
    parent = way.rows[place - 1] if place else ROOT
    start = way.depths[place - 1] if place else 0
    edge = way.between(start, depth)
    child = self._below.get((parent, edge[:KEY_BYTES]))
    row = table.new_row()
    table.parent[row], table.depth[row] = parent, depth
    table.number[row] = way.first_number + depth - way.matched - 1
    self._set_edge(row, edge)
    self._below[parent, edge[:KEY_BYTES]] = row
    if child is None:
      table.children[parent] += 1
      self.remembered_blocks += depth - start
    else:
      self._hang_below(row, child, depth - start)
    way.rows.insert(place, row)
    way.depths.insert(place, depth)
    return row

  def finish(self, way: Way) -> None:
    """Notes that a prompt has gone its way.

    Args:
      way: Of `walk`, with a candidate at its end, if it has a block at all.
    """
    self.changes += 1
    self._numbers += len(way.keys) - way.matched
    self._table.length[way.rows] = len(way.keys)
    for above, row in zip([ROOT, *way.rows], way.rows):
      self._favourite[above] = row

  def settle(self, way: Way) -> None:
    """Notes that candidates were made on a known way that no prompt has gone.

    Args:
      way: Of `walk`; the new ones take the length of who went there last.
    """
    self.changes += 1
    table = self._table
    new = [row for row in way.rows if not table.length[row]]
    table.length[new] = way.length

  def remove(self, row: int) -> None:
    """Forgets a candidate that has no children and no state.

    Args:
      row: Its row, which is free afterwards.
    """
    self.changes += 1
    edge, parent = self._edges[row], int(self._table.parent[row])
    self._edges[row] = b""
    if self._favourite[parent] == row:
      self._favourite[parent] = ROOT
    del self._below[parent, edge[:KEY_BYTES]]
    self._table.children[parent] -= 1
    self._table.free_row(row)
    self.remembered_blocks -= len(edge) // KEY_BYTES

  def _hang_below(self, row: int, child: int, cut: int) -> None:
    """Cuts the edge of a child in two, the upper part being the row's."""
    table, edge = self._table, self._edges[child]
    lower = edge[cut * KEY_BYTES :]
    self._edges[child], self._favourite[row] = lower, child
    self._below[row, lower[:KEY_BYTES]] = child
    if self._favourite[parent := int(table.parent[row])] == child:
      self._favourite[parent] = row
    table.parent[child] = row
    table.children[row] = 1
    table.number[row] = table.number[child] - len(lower) // KEY_BYTES
    pages.cut(table, row, child)

  def _set_edge(self, row: int, edge: bytes) -> None:
    """Hangs up a new row, without children."""
    if row == len(self._edges):
      self._edges.append(edge)
      self._favourite.append(ROOT)
    self._edges[row], self._favourite[row] = edge, ROOT


def _common(edge: bytes, following: bytes) -> int:
  """Bytes of the leading keys that an edge and what follows share."""
  most = min(len(edge), len(following)) // KEY_BYTES
  differ = np.frombuffer(edge, np.int64, most) != np.frombuffer(
    following, np.int64, most
  )
  return KEY_BYTES * (int(differ.argmax()) if differ.any() else most)
