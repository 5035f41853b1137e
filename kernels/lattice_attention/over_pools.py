"""Operations take arrays one by one; what computes them takes tuples of pools.

Attention to keys and values, and to latents, which are both, is one piece of
code over two pools or one.
"""

from collections.abc import Callable
from typing import Any


def over_pools(
  attend: Callable[..., Any], pools: int, **fixed: Any
) -> Callable[..., tuple[Any, ...]]:
  """An operation's form of what takes tokens and pools as tuples.

  Args:
    attend: Takes queries, the tokens of each pool, the pools, and what else the
      operation takes; returns outputs and pools.
    pools: Two, of keys and of values; or one of latents.
    **fixed: Options that the operation does not have.

  Example:
    >>> attend = lambda q, tokens, pools: (q * tokens[0], pools)
    >>> over_pools(attend, 1)(2, 3, "latents")
    (6, 'latents')
  """

  def run(q: Any, *arrays: Any, **options: Any) -> tuple[Any, ...]:
    tokens, held = arrays[:pools], arrays[pools : 2 * pools]
    out, held = attend(
      q, tokens, held, *arrays[2 * pools :], **fixed, **options
    )
    return out, *held

  return run
