"""What is told of an answer, piece by piece, while it grows."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from sparse_prefix_jax.cache.identity import OtherWeightsError
from sparse_prefix_jax.serving.answers import Delta, GrowingAnswer
from sparse_prefix_jax.serving.scheduler import Event, Finished, Started

OTHER_WEIGHTS = (
  "the weights of the model have changed, and nothing is answered until "
  "whoever runs the server has replaced them."
)


class Piece(NamedTuple):
  """What is new of one answer of a call.

  Attributes:
    index: Which answer: sample s of prompt p is p * samples + s.
    delta: What is new; None as long as it only started.
    prompt_tokens: Tokens of its prompt.
    restored: How many of them were restored; None before it started.
    error: What it failed with, or None.
  """

  index: int
  delta: Delta | None
  prompt_tokens: int
  restored: int | None = None
  error: str | None = None


@dataclasses.dataclass(eq=False)
class ServedAnswer:
  """An answer while it grows: of which call, where it stands."""

  tell: Callable[[Piece], None]
  index: int
  grown: GrowingAnswer
  prompt_tokens: int
  best: int
  started: Started | None = None

  def piece(self) -> Piece | None:
    """What is new of it, if anything is."""
    restored = self.started.restored if self.started else 0
    computed = self.started.computed if self.started else 0
    delta = self.grown.delta(self.index, restored, computed)
    if delta is None:
      return None
    return Piece(self.index, delta, self.prompt_tokens, restored)

  def take(self, event: Event) -> bool:
    """Grows by an event, and tells what is new; whether it is over."""
    if isinstance(event, Started):
      self.started = event
      return False
    if isinstance(event, Finished):
      if event.why not in ("stop", "length"):
        self.fail(_why(event))
        return True
      self.grown.finish(event.why.value)
    else:
      self.grown.add(event.id, event.logprob, event.best[: self.best])
    piece = self.piece()
    if piece is not None:
      self.tell(piece)
    return self.grown.finish_reason is not None

  def fail(self, error: object) -> None:
    """Tells that it ends here, and why."""
    sentence = " ".join(str(error).split())
    self.tell(Piece(self.index, None, self.prompt_tokens, None, sentence))


def _why(event: Finished) -> object:
  """What to say of a request that has no answer, to whoever asked."""
  if isinstance(event.error, OtherWeightsError):
    return OTHER_WEIGHTS
  return event.error or f"the request ended: {event.why}."
