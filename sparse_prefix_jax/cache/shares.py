"""One capacity in bytes, split between state slots and pages.

Slots and pages are arrays of two shapes, so a capacity is divided when they are
allocated. Server and simulator divide it by the same rule.
"""


def split(
  capacity: int, *, slot_bytes: int, page_bytes: int, share: float, longest: int
) -> tuple[int, int]:
  """How many slots and pages fit into a capacity.

  Args:
    capacity: Bytes for both.
    slot_bytes: Bytes of a state checkpoint, 0 without recurrent layers.
    page_bytes: Bytes of a page, 0 without attention.
    share: Share of the capacity for states; a model with one kind of layers
      gives all to what it has.
    longest: Chunks of the longest sequence.

  Returns:
    Slots and pages, together at most `capacity` bytes.

  >>> split(1000, slot_bytes=100, page_bytes=10, share=0.5, longest=8)
  (5, 50)
  """
  if page_bytes == 0:  # Pages are only names then: as many as anyone could use.
    slots = capacity // slot_bytes
    return slots, max(slots, 1) * longest
  if slot_bytes == 0:
    pages = capacity // page_bytes
    return max(pages, 2), pages
  slots = int(capacity * share) // slot_bytes
  return slots, (capacity - slots * slot_bytes) // page_bytes
