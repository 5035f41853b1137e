"""What a path through the tree offers to a prompt: pure functions."""

from collections.abc import Hashable, Sequence

from sparse_prefix_jax.placement import Features

from .results import Match, Reason
from .tokens import BYTES_PER_TOKEN, longest_common_tokens
from .tree import Node


def describe_match(
  root: Node | None,
  path: Sequence[Node],
  blocks: Sequence[Hashable],
  tail: bytes,
  *,
  limit: int | None,
  block_size: int,
) -> Match:
  """Describes the deepest stored prefix of a prompt.

  Args:
    root: root of the prompt's salt; None if nothing is stored under it.
    path: nodes of the deepest stored prefix.
    blocks: keys of the prompt's whole blocks.
    tail: key of its remaining tokens.
    limit: deepest block count to resume at; None: no limit.
    block_size: tokens of a block where keys are not bytes.

  Returns:
    the match.
  """
  resume = resume_depth(path, limit)
  state = path[resume - 1].slot if resume else None
  return Match(
    overlap_blocks=len(path),
    overlap_tokens=_overlap_tokens(root, path, blocks, tail, block_size),
    resume_blocks=resume,
    slot=state.number if state else -1,
    pages=tuple(node.page for node in path[:resume]),
    reason=_reason(path, resume, limit),
    features=_features(path[-1]) if path else None,
  )


def _features(node: Node) -> Features | None:
  """Of the entry inserted last through a node."""
  return node.latest.features if node.latest else None


def resume_depth(path: Sequence[Node], limit: int | None) -> int:
  """Depth of the deepest node, not past the limit, that holds a slot."""
  usable = path if limit is None else path[:limit]
  return next((node.depth for node in reversed(usable) if node.slot), 0)


def _reason(path: Sequence[Node], resume: int, limit: int | None) -> Reason:
  """Why the resume depth is not deeper."""
  if not path:
    return Reason.NO_OVERLAP
  if resume == len(path):
    return Reason.COMPLETE
  if resume == limit or resume_depth(path, None) > resume:
    return Reason.LAST_TOKEN
  return Reason.NO_STATE_CHECKPOINT


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
