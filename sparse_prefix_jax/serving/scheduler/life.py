"""One request of a scheduler, from arrival to end, on the host."""

import dataclasses

import numpy as np

from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import Running, TokenBuffer
from sparse_prefix_jax.runtime.host_copies import HostCopy
from sparse_prefix_jax.serving.scheduler.asked import Asked
from sparse_prefix_jax.serving.scheduler.events import RequestHandle


@dataclasses.dataclass(eq=False)
class Life:
  """A request: what was asked, what is known of its answer, where it is.

  It waits (`running` is None), runs, or is swapped out (`parked` is not None).

  Attributes:
    handle: What the caller holds.
    asked: What the caller asked for.
    opening: What the store opens: the prompt, or as much of prompt and answer
      as is prefilled again after the sequence was dropped.
    prompt: Tokens of its prompt.
    ids: Prompt and answer, as far as ids were read.
    running: What the store knows of it, while it runs or is swapped out.
    parked: Its slots and private pages while it is swapped out.
    seat: Its place in the arrays of the device while it runs.
    unread: Ids chosen on the device and not read yet, 0 or 1.
    started: Whether that it started was told.
    over: Whether it chooses no more, and its sequence waits for the caller.
    ended: Whether it is finished.
  """

  handle: RequestHandle
  asked: Asked
  opening: Request
  prompt: int
  ids: TokenBuffer
  running: Running | None = None
  parked: HostCopy | None = None
  seat: int = -1
  unread: int = 0
  started: bool = False
  over: bool = False
  ended: bool = False

  @property
  def order(self) -> tuple[int, int]:
    """Smaller ones are served first, and make room last."""
    return -self.asked.priority, self.handle.number

  @property
  def known(self) -> int:
    """Tokens of prompt and answer whose ids were read."""
    return len(self.ids)

  @property
  def answered(self) -> int:
    """Ids of its answer that were read."""
    return self.known - self.prompt

  @property
  def sequence(self) -> Running:
    """What the store knows of it; it runs."""
    assert self.running is not None
    return self.running

  @property
  def wants_token(self) -> bool:
    """Whether a step could compute its next token, once its prompt is."""
    if self.over:
      return False
    chosen = self.known + self.unread
    unfinished = self.answered + self.unread < self.asked.max_tokens
    return self.sequence.length < chosen and unfinished

  @property
  def last_id(self) -> int:
    """The id of the token booked last; -1 where only the device has it yet."""
    length = self.sequence.length
    return int(self.ids.ids[length - 1]) if length <= self.known else -1

  @property
  def chooses(self) -> bool:
    """Whether an id follows its last booked token: nobody has chosen it yet."""
    return self.sequence.length == self.known + self.unread

  def is_late(self, step: int) -> bool:
    """Whether the last step that may serve it has passed, and it goes on.

    Args:
      step: That begins.
    """
    last = self.asked.deadline
    return last is not None and last < step and not self.over

  def most_pages(self, chunk: int) -> int:
    """Pages of its prompt and longest answer.

    The last id is told and never computed with.

    Args:
      chunk: Tokens of a chunk, c.
    """
    return -(-(self.prompt + self.asked.max_tokens - 1) // chunk)

  def replay(self, chunk: int) -> Request:
    """What to prefill of a sequence that was dropped; the rest is decoded.

    Prefill and decode give other bits, so what was decoded is decoded again,
    but for whole chunks: those are prefilled in any case.

    Args:
      chunk: Tokens of a chunk, c.
    """
    consumed = self.known - 1 if self.answered else self.prompt
    start = max(self.prompt, consumed // chunk * chunk)
    return Request.of_tokens(
      np.array(self.ids.ids[:start]),
      chunk,
      anchors=self.opening.anchors,
      observed=True,
      salt=self.opening.salt,
    )

  def twin(
    self, handle: RequestHandle, sampling: object, *, judged: bool
  ) -> "Life":
    """The same past, to be continued differently.

    Args:
      handle: Of the twin.
      sampling: Of what it chooses from here on.
      judged: Whether that needs the ids before, whatever the caller asked for.
    """
    judged |= self.asked.judged
    asked = dataclasses.replace(self.asked, sampling=sampling, judged=judged)
    return Life(handle, asked, self.opening, self.prompt, self.ids.copy())
