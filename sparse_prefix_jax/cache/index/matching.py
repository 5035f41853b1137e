"""What a path through the tree offers to a prompt: pure functions."""

import operator
from collections.abc import Hashable, Sequence

from sparse_prefix_jax.placement import Features

from .results import Match, Reason
from .tokens import BYTES_PER_TOKEN, longest_common_tokens
from .tree import Absence, Node

_PAGE = operator.attrgetter("page")
_REASONS = {
  Absence.NOT_PLACED: Reason.NOT_PLACED,
  Absence.NOT_ADMITTED: Reason.NOT_ADMITTED,
  Absence.EVICTED: Reason.EVICTED,
}


def describe_match(
  root: Node | None,
  path: Sequence[Node],
  blocks: Sequence[Hashable],
  tail: bytes,
  *,
  limit: int | None,
  block_size: int,
  elsewhere: bool = False,
) -> Match:
  """Describes the deepest known prefix of a prompt.

  Args:
    root: Root of the prompt's salt; None if nothing is known under it.
    path: Nodes of the deepest known prefix.
    blocks: Keys of the prompt's whole blocks.
    tail: Key of its remaining tokens.
    limit: Deepest block count to resume at; None: no limit.
    block_size: Tokens of a block where keys are not bytes.
    elsewhere: Whether another salt has its first block.

  Returns:
    The match.
  """
  resume = resume_depth(path, limit)
  node = path[resume - 1] if resume else None
  tokens = _overlap_tokens(root, path, blocks, tail, block_size)
  return Match(
    overlap_blocks=len(path),
    overlap_tokens=tokens,
    resume_blocks=resume,
    slot=node.state.number if node and node.state else -1,
    pages=tuple(map(_PAGE, path[:resume])),
    reason=_reason(path, tokens, resume, limit, elsewhere),
    node=node,
    deepest=path[-1] if path else None,
    features=_features(path[-1]) if path else None,
    path=path,
  )


def _features(node: Node) -> Features | None:
  """What the placement knows of the entry remembered last through a node."""
  return node.latest.features if node.latest else None


def resume_depth(path: Sequence[Node], limit: int | None) -> int:
  """Depth of the deepest node, not past the limit, that holds a state."""
  usable = path if limit is None else path[:limit]
  return next((node.depth for node in reversed(usable) if node.state), 0)


def _reason(
  path: Sequence[Node],
  tokens: int,
  resume: int,
  limit: int | None,
  elsewhere: bool,
) -> Reason:
  """Why the resume depth is not deeper."""
  if not path and not tokens:
    return Reason.OTHER_TENANT if elsewhere else Reason.NO_OVERLAP
  if not path:
    return Reason.WITHIN_CHUNK
  if resume == len(path):
    return Reason.COMPLETE
  if resume == limit or resume_depth(path, None) > resume:
    return Reason.LAST_TOKEN
  return _missing(path[resume:limit])


def _missing(path: Sequence[Node]) -> Reason:
  """Why none of some nodes has a state: of the deepest that was to have one."""
  asked = (node.absence for node in reversed(path) if node.absence)
  return _REASONS[next(asked, Absence.NOT_PLACED)]


def _overlap_tokens(
  root: Node | None,
  path: Sequence[Node],
  blocks: Sequence[Hashable],
  tail: bytes,
  block_size: int,
) -> int:
  """Exact overlap in tokens: inside the next block as well, for bytes."""
  depth = len(path)
  node = path[-1] if path else root
  following = blocks[depth] if depth < len(blocks) else tail
  first = blocks[0] if blocks else tail
  if not isinstance(first, bytes) or not isinstance(following, bytes):
    return depth * block_size
  if node is None:
    return 0
  whole = depth * len(first) // BYTES_PER_TOKEN if blocks else 0
  return whole + longest_common_tokens(node.fringe, following)
