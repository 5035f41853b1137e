"""What a growth of the tree may ask for, checked before anything changes."""

from collections.abc import Hashable, Mapping, Sequence

from .ledger import Ledger
from .results import Pin


def check_growth(
  pin: Pin,
  keys: Sequence[Hashable],
  pages: Sequence[int],
  slots: Mapping[int, int],
  ledger: Ledger,
) -> None:
  """Refuses numbers that are not leased and depths that are not new.

  Args:
    pin: Where the path goes on.
    keys: Of the blocks after the pin's.
    pages: One per key.
    slots: By depth in blocks.
    ledger: Which numbers are leased.

  Raises:
    ValueError: As `PrefixIndex.grow`.
  """
  check_keys(keys, b"")
  if len(pages) != len(keys):
    raise ValueError(
      f"pages must name one page per block: {len(keys)} blocks, got "
      f"{len(pages)} pages."
    )
  for depth in slots:
    if not max(1, pin.depth) <= depth <= pin.depth + len(keys):
      raise ValueError(
        f"slots must name depths from {max(1, pin.depth)} to "
        f"{pin.depth + len(keys)}, got {depth}."
      )
  ledger.pages.require_leased(pages)
  ledger.slots.require_leased(slots.values())


def check_keys(blocks: Sequence[Hashable], tail: bytes) -> None:
  """Refuses blocks of different kinds or lengths, and a tail of a block.

  Raises:
    ValueError: If the keys are not all bytes of one length, or none of them
      bytes; if the tail is no bytes or as long as a block.
    TypeError: If a key cannot be hashed.
  """
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
