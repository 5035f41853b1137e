"""What a caller asked for, checked before anything changes."""

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import (
  Request,
  check_ids,
  check_request,
)
from sparse_prefix_jax.kinds import brief, check_flag
from sparse_prefix_jax.whole_numbers import check_at_least, check_whole


class QueueFullError(CapacityError):
  """As many requests run and wait as may; there is room again later."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
  """The arguments of `Scheduler.submit` beside the prompt, which says more.

  Attributes:
    sampling: For the sampler, which has checked it.
    max_tokens: Most ids to choose.
    salt: The tenant.
    priority: Larger ones come first.
    deadline: The last step that may serve it; None for no last one.
    anchors: Positions worth a state.
    stop_tokens: Ids that end it.
    judged: Whether the caller sees every id before the next is computed.
    held: Whether its sequence stays open once it has ended, until `cancel`.
    keep_logits: Whether the caller gets logits.
  """

  sampling: object
  max_tokens: int
  salt: str | bytes
  priority: int
  deadline: int | None
  anchors: Sequence[int]
  stop_tokens: frozenset[int]
  judged: bool
  held: bool
  keep_logits: bool

  def __post_init__(self) -> None:
    """Refuses what is out of range; integers of NumPy, which wrap, become ints.

    Raises:
      ValueError: Naming the argument, its value and what is allowed.
    """
    whole = {
      "max_tokens": check_at_least("max_tokens", self.max_tokens, 1),
      "priority": check_whole("priority", self.priority),
    }
    if self.deadline is not None:
      whole["deadline"] = check_at_least("deadline", self.deadline, 0)
    for name, number in whole.items():
      object.__setattr__(self, name, number)
    for name in ("judged", "held", "keep_logits"):
      check_flag(name, getattr(self, name))

  def request(self, prompt: at.Tokens, cache: PrefixCache) -> Request:
    """The prompt as the store takes it.

    Args:
      prompt: Token ids.
      cache: Says what fits.

    Raises:
      ValueError: If ids, anchors or the salt are wrong, or prompt and longest
        answer are longer than the model takes.
      CapacityError: If they do not fit, even alone.
    """
    request = check_request(cache.limits, prompt, self.anchors, self.salt)
    # The last id is told and never computed with.
    longest = request.length + self.max_tokens - 1
    if longest > cache.limits.max_length:
      raise ValueError(
        f"a prompt of {request.length} tokens and max_tokens = "
        f"{brief(self.max_tokens)} are more than max_length = "
        f"{cache.limits.max_length} of the model's configuration."
      )
    cache.store.check_fits(request)
    budget, pages = cache.store.index.budget, -(-longest // cache.store.chunk)
    if not budget.fits(2, pages):
      raise budget.shortage(longest, 2, pages)
    return request


def checked_stop_tokens(stop_tokens: Any, vocab_size: int) -> frozenset[int]:
  """Ids that end a request.

  Args:
    stop_tokens: What was given.
    vocab_size: Ids are below it.

  Raises:
    ValueError: If they are not ids of the vocabulary.
  """
  given = stop_tokens
  if isinstance(given, Set):
    given = sorted(given)
  return frozenset(check_ids("stop_tokens", given, vocab_size).tolist())
