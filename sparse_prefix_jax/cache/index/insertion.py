"""What an insertion will do, decided and checked before anything changes."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .ledger import Ledger
from .tree import Node


class Insertion(NamedTuple):
  """A checked insertion.

  Attributes:
    depths: depths in blocks whose slots the entry will claim, ascending.
    new_slots: leased slots that nodes will own, by depth.
    spare_slots: leased slots whose node has one already.
    spare_pages: leased pages whose node exists already.
  """

  depths: tuple[int, ...]
  new_slots: dict[int, int]
  spare_slots: tuple[int, ...]
  spare_pages: tuple[int, ...]


def plan_insertion(
  path: Sequence[Node],
  blocks: Sequence[Hashable],
  tail: bytes,
  pages: Sequence[int],
  slots: Mapping[int, int],
  claim: Sequence[int],
  ledger: Ledger,
) -> Insertion:
  """Decides what becomes of every number of an insertion.

  Args:
    path: existing nodes of the prompt, a prefix of its blocks.
    blocks: keys of the whole blocks.
    tail: key of the remaining tokens.
    pages: one page number per block.
    slots: slot number by depth.
    claim: depths whose existing slots are claimed too.
    ledger: which slots and pages are leased.

  Raises:
    ValueError: as `PrefixIndex.insert`.
  """
  _check_keys(blocks, tail)
  _check_depths("slots", slots, len(blocks))
  _check_depths("claim", claim, len(blocks))
  if len(pages) != len(blocks):
    raise ValueError(
      f"pages must name one page per block: {len(blocks)} blocks, got "
      f"{len(pages)} pages."
    )
  held_pages = [node.page for node in path]
  leased_pages = [*_differing(pages, held_pages), *pages[len(path) :]]
  ledger.pages.require_leased(leased_pages)
  held = {node.depth: node.slot.number for node in path if node.slot}
  leased = {d: s for d, s in slots.items() if held.get(d) != s}
  ledger.slots.require_leased(leased.values())
  claimed = {depth for depth in claim if depth in held}
  return Insertion(
    depths=tuple(sorted(claimed | slots.keys())),
    new_slots={d: s for d, s in leased.items() if d not in held},
    spare_slots=tuple(s for d, s in leased.items() if d in held),
    spare_pages=tuple(_differing(pages, held_pages)),
  )


def _differing(pages: Sequence[int], held: Sequence[int]) -> Iterator[int]:
  """Pages that are not the ones that the tree holds in their place."""
  return (page for page, own in zip(pages, held) if page != own)


def _check_keys(blocks: Sequence[Hashable], tail: bytes) -> None:
  """Refuses blocks of different kinds or lengths, and a tail of a block."""
  if not isinstance(tail, bytes):
    raise ValueError(f"tail must be bytes, got {type(tail).__name__}.")
  hash(tuple(blocks))  # A TypeError comes now or not at all.
  sizes = {len(k) if isinstance(k, bytes) else None for k in blocks}
  if len(sizes) > 1:
    raise ValueError(
      "blocks must all be bytes of one length, or none of them bytes."
    )
  size = sizes.pop() if sizes else None
  if size is not None and len(tail) >= size:
    raise ValueError(
      f"tail must be shorter than a block of {size} bytes, got {len(tail)}."
    )


def _check_depths(
  name: str, depths: Mapping[int, int] | Sequence[int], deepest: int
) -> None:
  """Refuses depths that are not whole blocks of the prompt."""
  for depth in depths:
    if not 1 <= depth <= deepest:
      raise ValueError(
        f"{name} must name depths between 1 and the {deepest} blocks of the "
        f"prompt, got {depth}."
      )
