"""A prompt of an engine and its answers, while they grow."""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from sparse_prefix_jax.cache.index import Reason
from sparse_prefix_jax.serving.answers import Generation, GrowingAnswer
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.scheduler import (
  Event,
  Finished,
  RequestHandle,
  Scheduler,
  Started,
)
from sparse_prefix_jax.serving.text.template import Message


@dataclasses.dataclass(eq=False)
class EngineTask:
  """A prompt and its answers, while they grow."""

  ids: np.ndarray
  anchors: tuple[int, ...]
  messages: list[Message] | None
  variables: dict[str, Any]
  answers: list[GrowingAnswer]
  handles: tuple[RequestHandle, ...] = ()
  open: list[RequestHandle] = dataclasses.field(default_factory=list)
  best: int = 0
  restored: int = 0
  computed: int = 0
  reason: Reason = Reason.NO_OVERLAP
  chosen: int = 0

  @property
  def complete(self) -> bool:
    """Whether all answers have ended."""
    return all(answer.finish_reason is not None for answer in self.answers)

  def submit(
    self, scheduler: Scheduler, sampling: Sampling, **asked: Any
  ) -> None:
    """Submits its samples; those after the first share its prompt's states."""
    # A stop string may end an answer before its next id is computed.
    judged = any(answer.judged for answer in self.answers)
    self.best = sampling.best
    for sample in range(len(self.answers)):
      handle = scheduler.submit(
        self.ids,
        sampling=(sampling, sample),
        anchors=self.anchors,
        judged=judged,
        held=True,
        **asked,
      )
      self.handles += (handle,)
      self.open.append(handle)

  def abandon(self, scheduler: Scheduler) -> None:
    """Ends what is still open, for a caller who gives up."""
    for handle in self.open:
      with contextlib.suppress(ValueError):  # It failed, and is gone.
        scheduler.cancel(handle)
    self.open = []

  def take(self, event: Event) -> bool:
    """Notes an event; whether it changed an answer."""
    sample = self.handles.index(event.handle)
    if isinstance(event, Started):
      if sample == 0:
        self.restored, self.computed = event.restored, event.computed
        self.reason = event.reason
      return False
    answer = self.answers[sample]
    if answer.finish_reason is not None:
      return False
    if not isinstance(event, Finished):
      answer.add(event.id, event.logprob, event.best[: self.best])
    elif event.error is not None:
      raise event.error
    else:
      answer.finish(event.why.value)
    return True

  def result(self) -> Generation:
    """What came of it."""
    return Generation(
      completions=tuple(answer.completion() for answer in self.answers),
      chosen=self.chosen,
      prompt_ids=tuple(self.ids.tolist()),
      restored=self.restored,
      computed=self.computed,
      reason=self.reason,
    )
