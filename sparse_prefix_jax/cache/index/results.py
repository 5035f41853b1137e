"""What the index hands out: matches, pins and counts."""

import dataclasses
import enum
from array import array
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from sparse_prefix_jax.placement import Features

from .tree import Node, State, hashes_along, keys_along


class Reason(enum.StrEnum):
  """Why a request did not resume any deeper.

  `complete`: It resumes at the last lattice point of its whole overlap.
  `no_overlap`: Not one leading token of it is stored.
  `within_chunk`: Its overlap ends before the first lattice point.
  `other_tenant`: Nor that, but its first block is stored for another salt.
  `not_placed`: Tokens are known further than states are kept, and nobody asked
  for a deeper one.
  `not_admitted`: Somebody did, and it was not worth its room, or none was left.
  `evicted`: A deeper state was stored, and went to make room.
  `last_token`: A deeper resume is ruled out, since the logits of its last token
  have to be computed.
  `no_room`: What was matched was given up, since the capacity holds no sequence
  beside it (never said by the index itself).

  Of the three reasons for a missing state the one is told that holds for the
  deepest place that anybody asked for.
  """

  COMPLETE = "complete"
  NO_OVERLAP = "no_overlap"
  WITHIN_CHUNK = "within_chunk"
  OTHER_TENANT = "other_tenant"
  NOT_PLACED = "not_placed"
  NOT_ADMITTED = "not_admitted"
  EVICTED = "evicted"
  LAST_TOKEN = "last_token"
  NO_ROOM = "no_room"


class Match(NamedTuple):
  """What the stored prefixes offer to one prompt.

  Attributes:
    overlap_blocks: Whole leading blocks that are known.
    overlap_tokens: Leading tokens that are known, exactly.
    resume_blocks: Block count at the deepest usable state checkpoint, 0: none.
    slot: Number of that state checkpoint's slot, -1: none.
    pages: Page numbers of blocks 1..resume_blocks.
    reason: Why it is not deeper.
    node: Where it resumes; None: nowhere.
    deepest: The last node that is known of it; None: none.
    features: Of the entry remembered last through that node, None if it is
      forgotten or had none.
    path: All nodes that are known of it, the last of which is `deepest`.
  """

  overlap_blocks: int
  overlap_tokens: int
  resume_blocks: int
  slot: int
  pages: tuple[int, ...]
  reason: Reason
  node: Node | None = None
  deepest: Node | None = None
  features: Features | None = None
  path: Sequence[Node] = ()

  @property
  def state_blocks(self) -> tuple[int, ...]:
    """Block counts at which states of the known prefix are kept, ascending."""
    return tuple(node.depth for node in self.path if node.state is not None)

  def blocks(self, keys: Sequence[Hashable]) -> list[Hashable]:
    """The prompt's keys, equal ones, but those that the tree has where it does.

    What is kept twice otherwise is kept once, and has been hashed already.

    Args:
      keys: Of the prompt's whole blocks.
    """
    return [*keys_along(self.path), *keys[len(self.path) :]]

  @property
  def hashes(self) -> "array[int]":
    """Hashes of the keys that the tree has."""
    return hashes_along(self.path)


@dataclasses.dataclass(frozen=True, eq=False)
class Pin:
  """A reference on a path and on the state at its end; compared by identity.

  Attributes:
    node: The end of the pinned path; None at depth 0, where nothing is held.
    salt: The tenant.
    state: The state at the end that is held, None where there was none.
  """

  node: Node | None
  salt: bytes
  state: State | None

  @property
  def depth(self) -> int:
    """Blocks of the pinned path."""
    return self.node.depth if self.node else 0


class Grown(NamedTuple):
  """What an index holds of a sequence after it grew.

  Attributes:
    pin: Holds the path to its last whole block.
    pages: The tree's page of every block that was added.
    slots: The tree's slot at every depth that a state was given for.
  """

  pin: Pin
  pages: tuple[int, ...]
  slots: dict[int, int]


class Shortage(NamedTuple):
  """What room is missing, as what one slot and one page count towards it.

  Attributes:
    slot: What a free slot counts.
    page: What a free page counts.
    slots: After so many free slots it is another one, or none: as many offers
      may be turned down before it is asked for again.
    beside: What a free slot counts beside pages where pages alone are short: of
      no use to them, but to whoever comes next.
  """

  slot: int
  page: int
  slots: int = 1
  beside: int = 0


class Renumbering(NamedTuple):
  """What gets another number, so that all are below a limit.

  Attributes:
    slots: New slot by old one.
    pages: New page by old one.
  """

  slots: dict[int, int]
  pages: dict[int, int]


class IndexStats(NamedTuple):
  """Counts of an index for a report.

  Attributes:
    entries: Prompts remembered.
    states: State checkpoints stored.
    pins: Pins that are open.
    held_slots: Slots of the tree and of leases.
    held_pages: Pages of the tree and of leases.
    held_bytes: Bytes of both.
    leased_slots: Slots reserved and not in the tree.
    leased_pages: Pages reserved and not in the tree.
    remembered_bytes: Host memory of entries and of nodes without a page.
    evictions: State checkpoints that were dropped to make room.
    forgotten: Entries that were dropped to bound the host memory.
  """

  entries: int
  states: int
  pins: int
  held_slots: int
  held_pages: int
  held_bytes: int
  leased_slots: int
  leased_pages: int
  remembered_bytes: int
  evictions: int
  forgotten: int
