"""Nodes of the prefix tree behind one another, looked at together: `Chain`."""

import dataclasses
from array import array
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .tokens import TokenBlocks, common_blocks

if TYPE_CHECKING:
  from .tree import Node

Need: TypeAlias = Literal["pins", "states"]
"""What needs pages, as a chain names where it ends."""


def reach(ends: Sequence[int]) -> int:
  """How many leading nodes of a chain something needs.

  Args:
    ends: The places of nodes up to which something needs them, in order.

  >>> reach([0, 2]), reach([])
  (3, 0)
  """
  return ends[-1] + 1 if ends else 0


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Chain:
  """Nodes of which each is a child of the one before.

  They were added one behind another, and most prompts that go through one of
  them go through the next ones: so their keys are compared many at a time.

  What needs the pages of a path is counted where it ends, once for each chain:
  a way of thousands of blocks is held and released in a few steps.

  Attributes:
    depth: Blocks of the first node.
    nodes: The nodes; the first is the last to go.
    keys: Their keys.
    hashes: The hashes of these.
    width: Bytes of every key; 0 where they differ or are none.
    pins: Places, in order, of nodes with an open pin, once for each pin, and of
      nodes below which another chain begins that is pinned.
    states: The same of states.
  """

  depth: int
  nodes: "list[Node]" = dataclasses.field(default_factory=list)
  keys: list[Any] = dataclasses.field(default_factory=list)
  hashes: "array[int]" = dataclasses.field(default_factory=lambda: array("q"))
  width: int = 0
  pins: tuple[int, ...] = ()  # Takes nothing while there are none.
  states: tuple[int, ...] = ()

  @property
  def needed(self) -> int:
    """How many of the leading nodes a pin or a state needs."""
    return max(reach(self.pins), reach(self.states))

  def add(self, node: "Node") -> None:
    """Takes in a child of the last one."""
    width = len(node.key) if isinstance(node.key, bytes) else 0
    self.width = width if width == self.width or not self.nodes else 0
    self.nodes.append(node)
    self.keys.append(node.key)
    self.hashes.append(hash(node.key))

  def drop_last(self) -> None:
    """The last one, which has no child, goes."""
    del self.nodes[-1], self.keys[-1], self.hashes[-1]

  def shared(
    self, node: "Node", blocks: Sequence[Hashable], at: int
  ) -> "list[Node]":
    """The nodes from one on that have the keys of a prompt from a block on.

    Args:
      node: One of them.
      blocks: Keys of the prompt.
      at: The number of the block.
    """
    start = node.depth - self.depth
    keys = self.keys[start : start + len(blocks) - at]
    if isinstance(blocks, TokenBlocks) and blocks.width == self.width:
      count = blocks.common(keys, at)
    else:
      count = common_blocks(keys, blocks, at)
    return self.nodes[start : start + count]
