"""What the index hands out: matches, pins, insertions, counts."""

import dataclasses
import enum
from typing import NamedTuple

from sparse_prefix_jax.placement import Features

from .tree import Entry, Node


class Reason(enum.StrEnum):
  """Why a request did not resume any deeper.

  `complete`: it resumes at the end of its whole overlap. `no_overlap`: not one
  whole block of it is stored. `no_state_checkpoint`: pages are stored further
  than states. `last_token`: a deeper resume is ruled out by the limit, since
  the logits of the last token have to be computed (DESIGN.md section 1, 7).
  `no_room`: the caller gave up what was matched, since its capacity holds no
  sequence beside it (never said by the index itself).
  """

  COMPLETE = "complete"
  NO_OVERLAP = "no_overlap"
  NO_STATE_CHECKPOINT = "no_state_checkpoint"
  LAST_TOKEN = "last_token"
  NO_ROOM = "no_room"


class Match(NamedTuple):
  """What the stored prefixes offer to one prompt.

  Attributes:
    overlap_blocks: whole leading blocks that are stored.
    overlap_tokens: leading tokens that are stored, exactly.
    resume_blocks: block count at the deepest usable state checkpoint, 0: none.
    slot: number of that state checkpoint's slot, -1: none.
    pages: page numbers of blocks 1..resume_blocks.
    reason: why it is not deeper.
    features: of the entry inserted last through the deepest stored block,
      None if it is not stored any more or had none.
  """

  overlap_blocks: int
  overlap_tokens: int
  resume_blocks: int
  slot: int
  pages: tuple[int, ...]
  reason: Reason
  features: Features | None = None


class Inserted(NamedTuple):
  """What an insertion left in the tree.

  Attributes:
    entry: the entry, new or refreshed.
    pages: canonical page number of every whole block.
    slots: canonical slot number of every depth passed or claimed.
    freed_pages: pages of the caller that were duplicates and are free now.
    freed_slots: slots of the caller that were duplicates and are free now.
  """

  entry: Entry
  pages: tuple[int, ...]
  slots: dict[int, int]
  freed_pages: tuple[int, ...]
  freed_slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Pin:
  """A reference on a path and on the slot at its end; compared by identity.

  Attributes:
    node: end of the pinned path; None at depth 0, where nothing is held.
    salt: the tenant.
    holds_slot: whether the node held a slot when it was pinned.
  """

  node: Node | None
  salt: bytes
  holds_slot: bool

  @property
  def depth(self) -> int:
    """Blocks of the pinned path."""
    return self.node.depth if self.node else 0


class Stats(NamedTuple):
  """Counts for a report.

  Attributes:
    entries: entries stored.
    pins: pins that are open.
    held_slots: slots of the tree and of leases.
    held_pages: pages of the tree and of leases.
    held_bytes: bytes of both.
    leased_slots: slots reserved and not inserted yet.
    leased_pages: pages reserved and not inserted yet.
    evictions: entries that were dropped to make room.
  """

  entries: int
  pins: int
  held_slots: int
  held_pages: int
  held_bytes: int
  leased_slots: int
  leased_pages: int
  evictions: int
