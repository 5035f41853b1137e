"""Who steps the scheduler: one thread, which everybody else talks to by queues.

Texts grow in that thread, right after the step that chose their ids, so that a
stop string ends an answer before more of it is computed. Prompts become ids in
threads of their own: nobody waits for the text of somebody else.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sparse_prefix_jax.cache.identity import OtherWeightsError
from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import check_request, check_tokens
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.serving.answers import GrowingAnswer
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.scheduler import (
  Event,
  Finished,
  QueueFullError,
  RequestHandle,
  Scheduler,
)
from sparse_prefix_jax.serving.scheduler.watched_model import WatchedModel
from sparse_prefix_jax.serving.server.calls import (
  AskedPrompt,
  Call,
  Conversation,
)
from sparse_prefix_jax.serving.server.inbox import Inbox, ShutDownError
from sparse_prefix_jax.serving.server.pieces import (
  OTHER_WEIGHTS,
  Piece,
  ServedAnswer,
)
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer

_PromptIds: TypeAlias = tuple[np.ndarray, tuple[int, ...]]

_LOG = logging.getLogger(__name__)
# A step that fails ends those that it computed; so many in a row help nobody.
_MOST_FAILURES = 8


class Service:
  """Answers calls of any number of tasks of an event loop.

  Args:
    model: The model of the cache.
    cache: Where sequences run.
    tokenizer: Of the model.
    scheduler: Of the two, which nobody else steps; it says how many may wait.
    compiling: Is told what is compiled before the first call is answered; None
      compiles nothing ahead.
    ready: Is called when calls are answered from then on.
  """

  def __init__(
    self,
    model: HybridDecoder,
    cache: PrefixCache,
    tokenizer: TextTokenizer,
    scheduler: Scheduler,
    *,
    compiling: Callable[[str], None] | None = None,
    ready: Callable[[], None] | None = None,
  ) -> None:
    """Answers nobody until `start`."""
    # The model itself is not kept: weights that are replaced may go.
    self.cache, self.tokenizer = cache, tokenizer
    self._scheduler, self._compiling = scheduler, compiling
    # Not the scheduler's: other threads look at this one.
    self._watched = WatchedModel(model, cache)
    self._ready = ready
    self._end_ids = tokenizer.end_ids | set(model.config.end_ids)
    self._inbox = Inbox()
    self._answers: dict[RequestHandle, ServedAnswer] = {}
    self._closing, self._failures = False, 0
    self._thread: threading.Thread | None = None
    self._trouble: str | None = "the server is starting."

  async def refusal(self) -> str | None:
    """Why a call would be refused now, whatever it asks; None where it serves.

    Weights that have changed are found before a call meets them.
    """
    if self._trouble is not None:
      return self._trouble
    wrong = await asyncio.to_thread(self._watched.refusal)
    return None if wrong is None else OTHER_WEIGHTS

  def start(self) -> None:
    """Begins to step, for the first time or after it had stopped.

    Raises:
      RuntimeError: If it steps already.
    """
    if self._thread is not None and self._thread.is_alive():
      raise RuntimeError("the service runs already; one application starts it.")
    self._closing, self._failures = False, 0
    self._trouble = "the server is starting."
    self._inbox.open()
    self._thread = threading.Thread(target=self._run, name="scheduler")
    self._thread.start()

  def stop(self) -> None:
    """Ends once everything that was begun is finished; waits for that."""
    if self._thread is None:
      return
    self._closing = True
    self._inbox.tell(lambda: None)  # It may wait for a command.
    self._thread.join()

  def counts(self) -> Mapping[str, int]:
    """How many requests wait and run, and what the scheduler counts."""
    answers = list(self._answers.values())
    waiting = sum(answer.started is None for answer in answers)
    return {
      "waiting": waiting,
      "running": len(answers) - waiting,
      "steps": self._scheduler.steps,
      **self._scheduler.counts,
    }

  async def answer(
    self, call: Call, salt: bytes
  ) -> AsyncGenerator[Piece, None]:
    """Answers a call; whoever stops to iterate ends it within a step.

    Args:
      call: What is asked.
      salt: Callers with different salts share nothing.

    Returns:
      Pieces of its answers, in the order in which they come.

    Raises:
      ValueError: If prompts cannot be meant.
      CapacityError: If an answer could never fit.
      QueueFullError: If too many wait.
      ShutDownError: If no request is taken any more.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece] = asyncio.Queue()

    def tell(piece: Piece) -> None:
      with contextlib.suppress(RuntimeError):  # The loop is closed.
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    # Long texts take a while, in which the steps of others go on.
    prompts = await asyncio.to_thread(self._prompts, call)
    submitted = asyncio.ensure_future(
      self._inbox.ask(lambda: self._submit(call, prompts, salt, tell))
    )
    try:
      handles = await asyncio.shield(submitted)
    except asyncio.CancelledError:
      submitted.add_done_callback(self._abandon)
      raise
    left = len(handles)
    try:
      while left:
        piece = await pieces.get()
        ended = (
          piece.delta is not None and piece.delta.finish_reason is not None
        )
        left -= ended or piece.error is not None
        yield piece
    finally:
      if left:
        self._inbox.tell(lambda: self._cancel(handles))

  async def states(self, prompt: AskedPrompt, salt: bytes) -> dict[str, Any]:
    """What is stored of a prompt; nothing changes.

    Args:
      prompt: As in a call.
      salt: As in `answer`.

    Returns:
      Numbers of tokens: of the prompt, of the known prefix, of what would be
      restored, and the positions of the states that are kept.
    """
    ids, _ = await asyncio.to_thread(self._prompt, prompt)

    def look() -> dict[str, Any]:
      with self.cache.call():
        request = check_request(self.cache.limits, ids, salt=salt)
        match, chunk = self.cache.store.match(request), self.cache.store.chunk
      return {
        "prompt_tokens": request.length,
        "known_tokens": match.overlap_tokens,
        "restored_tokens": match.resume_blocks * chunk,
        "state_positions": [depth * chunk for depth in match.state_blocks],
      }

    return await self._inbox.ask(look)

  def _abandon(self, submitted: "asyncio.Task[list[RequestHandle]]") -> None:
    """Ends what was submitted for somebody who has gone meanwhile."""
    if not submitted.cancelled() and submitted.exception() is None:
      handles = submitted.result()
      self._inbox.tell(lambda: self._cancel(handles))

  def _run(self) -> None:
    """Serves; whatever ends that, everybody who waits is told."""
    sentence = "the server has ended."
    try:
      self._warm_up()
      self._trouble = None
      if self._ready is not None and not self._closing:
        self._ready()
      self._serve()
    except Exception as error:
      _LOG.exception("the server has failed")
      sentence = f"the server has failed: {str(error).rstrip('.')}."
    finally:
      self._trouble = sentence
      self._inbox.close(sentence)
      answers, self._answers = self._answers, {}
      for answer in answers.values():
        answer.fail(sentence)

  def _warm_up(self) -> None:
    """Compiles what most calls need, unless that is not wanted, or the end."""
    if self._compiling is None:
      return
    for stage in self._scheduler.warm_up([None, Sampling(temperature=1.0)]):
      if self._closing:
        return
      self._compiling(stage)

  def _serve(self) -> None:
    """Steps as long as there is something to do.

    Commands and answers may raise; none ends it.
    """
    while not (self._closing and self._scheduler.idle):
      self._inbox.obey(wait=self._scheduler.idle and not self._closing)
      if not self._scheduler.idle:
        for event in self._step():
          self._take(event)

  def _step(self) -> Sequence[Event]:
    """A step of the scheduler.

    One that fails has ended the requests that it was computing, which the next
    one tells; the others go on.
    """
    try:
      events = self._scheduler.step()
    except Exception:
      _LOG.exception("a step failed")
      self._failures += 1
      if self._failures == _MOST_FAILURES:
        raise
      return ()
    self._failures = 0
    return events

  def _submit(
    self,
    call: Call,
    prompts: Sequence[_PromptIds],
    salt: bytes,
    tell: Callable[[Piece], None],
  ) -> list[RequestHandle]:
    """Submits all answers of a call, or none."""
    if self._closing:
      raise ShutDownError("the server is about to end.")
    self._scheduler.check_places(len(prompts) * call.samples)
    handles: list[RequestHandle] = []
    try:
      for ids, anchors in prompts:
        for sample in range(call.samples):
          handles.append(
            self._scheduler.submit(
              ids,
              sampling=(call.sampling, sample),
              max_tokens=call.max_tokens
              or self._scheduler.most_tokens(len(ids)),
              salt=salt,
              anchors=anchors,
              stop_tokens=self._end_ids,
              judged=bool(call.stops),
            )
          )
          self._answers[handles[-1]] = ServedAnswer(
            tell,
            len(handles) - 1,
            GrowingAnswer(self.tokenizer, call.stops, self._end_ids),
            len(ids),
            call.sampling.best,
          )
    except Exception as error:
      self._cancel(handles)
      if isinstance(error, OtherWeightsError):
        raise ShutDownError(OTHER_WEIGHTS) from error
      raise
    return handles

  def _prompts(self, call: Call) -> list[_PromptIds]:
    """The prompts of a call as ids, and their anchors."""
    if len(call.prompts) == 1:
      return [self._prompt(call.prompts[0])]
    return [
      self._prompt(prompt, f"prompt[{i}]")
      for i, prompt in enumerate(call.prompts)
    ]

  def _prompt(self, prompt: AskedPrompt, name: str = "prompt") -> _PromptIds:
    """A prompt as ids, and its anchors."""
    ids: Any = prompt
    anchors: tuple[int, ...] = ()
    if isinstance(prompt, str):
      ids = self.tokenizer.encode(prompt)
    elif isinstance(prompt, Conversation):
      ids, anchors = self.tokenizer.encode_chat(
        prompt.messages, **prompt.variables
      )
      name = "the text of messages"
    return check_tokens(name, ids, self.cache.limits), anchors

  def _cancel(self, handles: Sequence[RequestHandle]) -> None:
    """Ends what still runs; what was told of it stays stored."""
    for handle in handles:
      if self._answers.pop(handle, None) is not None:
        self._let_go(handle)

  def _let_go(self, handle: RequestHandle) -> None:
    """Ends a request of which nobody wants to hear any more."""
    try:
      self._scheduler.cancel(handle)
    except ValueError:
      pass  # A step has finished it and tells so later, or did so just now.
    except Exception:
      _LOG.exception("a request could not be stored")

  def _take(self, event: Event) -> None:
    """Lets an answer grow, and tells what is new of it."""
    answer = self._answers.get(event.handle)
    if answer is None:
      return
    if isinstance(event, Finished) and event.error is not None:
      _LOG.error("a request failed", exc_info=event.error)
    try:
      over = answer.take(event)
    except Exception as error:  # of a tokenizer, for example
      _LOG.exception("an answer failed")
      answer.fail(error)
      over = True
    if over:
      del self._answers[event.handle]
      if not isinstance(event, Finished):
        self._let_go(event.handle)


REFUSALS: dict[type[Exception], int] = {
  QueueFullError: 429,
  ShutDownError: 503,
  CapacityError: 400,
  ValueError: 400,
}
"""The status of what `Service.answer` raises."""
