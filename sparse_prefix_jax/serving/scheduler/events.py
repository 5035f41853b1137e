"""What a step of the scheduler tells: a request started, has an id, ended."""

import dataclasses
import enum
from typing import TypeAlias

import numpy as np

from sparse_prefix_jax.cache.index import Reason
from sparse_prefix_jax.runtime.row_sampler import Sampled


@dataclasses.dataclass(frozen=True)
class RequestHandle:
  """Handle of a request, from `submit` until it is finished.

  Attributes:
    number: In the order of arrival; no two of a scheduler have the same.
  """

  number: int


class Ending(enum.StrEnum):
  """Why a request is finished.

  `stop`: It chose one of its stop tokens.
  `length`: It has as many ids as it asked for.
  `cancelled`: Somebody cancelled it.
  `deadline`: The step that it named has passed.
  `failed`: An exception ended it; the event carries it where there was one of
  its own.
  """

  STOP = "stop"
  LENGTH = "length"
  CANCELLED = "cancelled"
  DEADLINE = "deadline"
  FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class Started:
  """A request runs from here on; it is told once.

  Attributes:
    handle: Of the request.
    restored: Tokens of its prompt that a restored state made unnecessary.
    computed: Tokens of its prompt that are computed.
    reason: Why it did not resume any deeper.
  """

  handle: RequestHandle
  restored: int
  computed: int
  reason: Reason


@dataclasses.dataclass(frozen=True, eq=False)
class TokenEvent:
  """A request has one more id.

  Attributes:
    handle: Of the request.
    id: The id.
    position: Where it stands, the first token of the prompt being 0.
    logprob: Its logarithmic probability, as the sampler says it.
    best: The most probable ids with theirs, where the sampler was asked.
    logits: Float32 that it was chosen from, where the request keeps them;
      otherwise None. [vocab]
  """

  handle: RequestHandle
  id: int
  position: int
  logprob: float
  best: tuple[tuple[int, float], ...]
  logits: np.ndarray | None


def token_event(
  handle: RequestHandle,
  position: int,
  drawn: Sampled,
  logits: np.ndarray | None,
) -> TokenEvent:
  """Tells of an id that was drawn.

  Args:
    handle: Of its request.
    position: Where it stands.
    drawn: Its row of what a program drew.
    logits: That it was chosen from, or None.
  """
  best = zip(drawn.best_ids.tolist(), drawn.best_logprobs.tolist())
  return TokenEvent(
    handle,
    int(drawn.ids),
    position,
    float(drawn.logprobs),
    tuple(pair for pair in best if pair[0] >= 0),
    logits,
  )


@dataclasses.dataclass(frozen=True)
class Finished:
  """A request is over.

  Its handle means nothing any more, but for a request that is held: there it
  stands for the sequence, until `Scheduler.cancel`.

  Attributes:
    handle: Of the request.
    why: What ended it.
    error: The exception of its own that it failed with, or None.
  """

  handle: RequestHandle
  why: Ending
  error: Exception | None = None


Event: TypeAlias = Started | TokenEvent | Finished
"""What `Scheduler.step` returns."""
