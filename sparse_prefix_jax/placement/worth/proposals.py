"""Where a prompt might keep states: the depths that are worth a thought."""

from collections.abc import Collection, Sequence

from sparse_prefix_jax.placement.worth.cells import Kind


def proposals(
  length: int,
  *,
  matched: int,
  offsets: Sequence[int] = (),
  start_depth: int | None = None,
  anchors: Collection[int] = (),
  roomy: bool = False,
) -> list[tuple[int, Kind]]:
  """Lists the depths at which a prompt proposes candidates.

  They are its end, the place where it leaves what is known, the anchors that it
  names, as far before its end as earlier ones were left, as far from its start
  as most were, and, while there is room for anything, 1, 2, 4, ... blocks: of a
  stream that has just begun nobody knows where it will branch.

  Args:
    length: Blocks of the prompt, L.
    matched: How many of them are known, m.
    offsets: Blocks before the end, the largest first, at most two.
    start_depth: Blocks after the start, of use beyond what is known.
    anchors: Depths in blocks, in (0, length].
    roomy: Whether fewer states are held than there is room for.

  Returns:
    Depths, ascending, and what each is proposed as: the lowest kind of several.

  >>> [(d, kind.name) for d, kind in proposals(9, matched=4, offsets=(2,))]
  [(4, 'BRANCH'), (7, 'OFFSET'), (9, 'END')]
  """
  if not length:
    return []
  found = {length: Kind.END}
  branches = [matched] if 0 < matched < length else []
  for depth in [*branches, *sorted(anchors)]:
    found.setdefault(depth, Kind.BRANCH)
  for offset, kind in zip(offsets, (Kind.OFFSET, Kind.NEXT_OFFSET)):
    if offset < length:
      found.setdefault(length - offset, kind)
  if start_depth is not None and matched < start_depth < length:
    found.setdefault(start_depth, Kind.START_DEPTH)
  depth = 1
  while roomy and depth < length:
    found.setdefault(depth, Kind.DYADIC)
    depth *= 2
  return sorted(found.items())
