"""Engine: text in, text out, over a model and its cache."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import check_tokens
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.serving.answers import (
  Completion,
  Delta,
  Generation,
  GrowingAnswer,
)
from sparse_prefix_jax.serving.checks import check_cache
from sparse_prefix_jax.serving.engine_task import EngineTask
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.scheduler import (
  Finished,
  Scheduler,
)
from sparse_prefix_jax.serving.scheduler.watched_model import WatchedModel
from sparse_prefix_jax.serving.text.stop_strings import checked_stops
from sparse_prefix_jax.serving.text.template import (
  Message,
  checked_variables,
)
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.whole_numbers import check_whole

TextPrompt: TypeAlias = str | Sequence[int] | np.ndarray | Sequence[Message]
"""A text, its ids, or the messages of a conversation."""
SampleChoice: TypeAlias = Callable[[tuple[Completion, ...]], int]
"""Which of the samples of a prompt goes on, and so is worth storing."""

_MOST_SAMPLES = 128
_NEXT = {"role": "user", "content": "And?"}
_TOOL = {"role": "tool", "name": "f", "tool_call_id": "0", "content": "Done."}


def first_sample(completions: tuple[Completion, ...]) -> int:
  """Chooses the first of the samples."""
  del completions
  return 0


class Engine:
  """Text in, text out.

  Texts are what they would be without the cache, bit for bit before they are
  letters. What is drawn depends on prompt, sampling and sample index alone. The
  ends of the messages of a conversation are anchors, the one before the
  generation prompt among them, so the next turn resumes there.

  Attributes:
    cache: Of the model.
    tokenizer: With the chat template.

  Example:
    >>> from sparse_prefix_jax import PrefixCache
    >>> from sparse_prefix_jax.training.trained import trained_model
    >>> from sparse_prefix_jax.workloads.recall.tokenizer import (
    ...   recall_tokenizer,
    ... )
    >>> model = trained_model(ladder=(1,))
    >>> cache = PrefixCache(model, capacity="16MiB")
    >>> engine = Engine(model, cache, recall_tokenizer())
    >>> fact = "Anna Berg lives in Oslo . It rained near Lima ."
    >>> question = " Where does Anna Berg live ? In"
    >>> (out,) = engine.generate([fact + question], max_tokens=1)
    >>> out.text
    'Oslo'
  """

  def __init__(
    self, model: HybridDecoder, cache: PrefixCache, tokenizer: Any
  ) -> None:
    """Puts the three together.

    Args:
      model: The model of the cache.
      cache: Where states, keys and values are kept.
      tokenizer: A `TextTokenizer`, or a `tokenizers.Tokenizer`, which gets a
        plain chat template.

    Raises:
      ValueError: If they do not belong together.
      MissingExtraError: If `tokenizers` or `jinja2` is not installed.
    """
    check_cache(cache)
    self._watched = WatchedModel(model, cache)
    if not isinstance(tokenizer, TextTokenizer):
      tokenizer = TextTokenizer(tokenizer)
    tokenizer.check_vocabulary(model.config.vocab_size)
    self.cache, self.tokenizer = cache, tokenizer
    self._end_ids = tokenizer.end_ids | set(model.config.end_ids)

  @property
  def model(self) -> HybridDecoder:
    """The model, or the one whose weights its cache was given since."""
    return self._watched.current()

  def generate(
    self,
    prompts: Sequence[TextPrompt],
    sampling: Sampling | None = None,
    *,
    max_tokens: int = 128,
    stop: str | Sequence[str] | None = None,
    n: int = 1,
    choose: SampleChoice = first_sample,
    salt: str | bytes = b"",
    template: Mapping[str, Any] | None = None,
  ) -> tuple[Generation, ...]:
    """Answers prompts, decoded together.

    Args:
      prompts: Each a text, its ids, or the messages of a conversation.
      sampling: How ids are drawn; None takes the most probable.
      max_tokens: How many to draw for a sample at most.
      stop: Strings before which a text ends.
      n: Samples of each prompt; they share the states of one prefill.
      choose: Which sample is stored with its answer, given all of a prompt. Of
        the others the prompt is kept; of a conversation, what its template
        would repeat in the next turn: thinking that it drops is not stored.
      salt: Requests with different salts share nothing.
      template: What the chat template reads besides, such as tools.

    Returns:
      A result per prompt.

    Raises:
      ValueError: If an argument cannot be meant; nothing was computed then. Or
        if `choose` returns no number of a sample; the prompts stay stored.
      CapacityError: If the sequences do not fit into the cache; what was
        computed stays stored.
      RuntimeError: If somebody else ended a sequence of it.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
      raise ValueError(
        f"prompts is {brief(prompts)}; it must be a list of texts, ids "
        "or conversations."
      )
    variables = checked_variables("template", template)
    tasks = [
      self._task(f"prompts[{i}]", prompt, stop, n, variables)
      for i, prompt in enumerate(prompts)
    ]
    asked = self._checked(sampling, max_tokens, choose)
    with self._submitted(tasks, asked, max_tokens, salt) as scheduler:
      for task, _ in _events(scheduler, tasks):
        if task.complete:
          self._close(scheduler, task, choose)
    return tuple(task.result() for task in tasks)

  def stream(
    self,
    prompt: TextPrompt,
    sampling: Sampling | None = None,
    *,
    max_tokens: int = 128,
    stop: str | Sequence[str] | None = None,
    n: int = 1,
    choose: SampleChoice = first_sample,
    salt: str | bytes = b"",
    template: Mapping[str, Any] | None = None,
  ) -> Iterator[Delta]:
    """Answers one prompt, piece by piece.

    Whoever stops to iterate ends the answer; what was decoded is stored.

    Args:
      prompt: A text, its ids, or the messages of a conversation.
      sampling: As in `generate`, as are all others.
      max_tokens: How many to draw for a sample at most.
      stop: Strings before which a text ends.
      n: Samples.
      choose: Which sample is stored with its answer.
      salt: Requests with different salts share nothing.
      template: What the chat template reads besides.

    Returns:
      Deltas: those of a sample in a row are its text.

    Raises:
      ValueError: At once, if an argument cannot be meant; at the end of it, if
        `choose` returns no number of a sample.
      RuntimeError: While it is iterated, if somebody else ended its sequence.
    """
    variables = checked_variables("template", template)
    task = self._task("prompt", prompt, stop, n, variables)
    asked = self._checked(sampling, max_tokens, choose)
    context = self._submitted([task], asked, max_tokens, salt)
    return self._deltas(task, context, choose)

  def _deltas(
    self,
    task: EngineTask,
    context: contextlib.AbstractContextManager[Scheduler],
    choose: SampleChoice,
  ) -> Iterator[Delta]:
    """The deltas of a task that was submitted."""
    with context as scheduler:
      for _, sample in _events(scheduler, [task]):
        delta = task.answers[sample].delta(sample, task.restored, task.computed)
        if task.complete:
          self._close(scheduler, task, choose)
        if delta is not None:
          yield delta

  def _task(
    self,
    name: str,
    prompt: Any,
    stop: Any,
    samples: Any,
    variables: dict[str, Any],
  ) -> EngineTask:
    """A prompt as ids, checked."""
    stops = checked_stops(stop)
    if not 1 <= check_whole("n", samples) <= _MOST_SAMPLES:
      raise ValueError(
        f"n is {brief(samples)}; it must be 1 to {_MOST_SAMPLES}."
      )
    anchors, messages = (), None
    if isinstance(prompt, str):
      ids = self.tokenizer.encode(prompt)
    elif isinstance(prompt, Mapping):
      raise ValueError(
        f"{name} is one message; a conversation is a list of messages, and "
        "prompts are a list of conversations."
      )
    elif _is_conversation(prompt):
      messages = list(prompt)
      ids, anchors = self.tokenizer.encode_chat(messages, **variables)
    else:
      ids = prompt
    ids = check_tokens(name, ids, self.cache.limits)
    answers = [
      GrowingAnswer(self.tokenizer, stops, self._end_ids)
      for _ in range(samples)
    ]
    return EngineTask(ids, anchors, messages, variables, answers)

  def _checked(self, sampling: Any, max_tokens: Any, choose: Any) -> Sampling:
    """How ids are drawn, if all of it can be meant."""
    if not callable(choose):
      raise ValueError(
        f"choose is {brief(choose)}; it must be a function of the "
        "completions of a prompt."
      )
    sampling = Sampling() if sampling is None else sampling
    if not isinstance(sampling, Sampling):
      raise ValueError(f"sampling is {brief(sampling)}; it must be a Sampling.")
    sampling.check_vocabulary(self.model.config.vocab_size)
    if check_whole("max_tokens", max_tokens) < 1:
      raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1.")
    return sampling

  @contextlib.contextmanager
  def _submitted(
    self,
    tasks: Sequence[EngineTask],
    sampling: Sampling,
    max_tokens: int,
    salt: str | bytes,
  ) -> Iterator[Scheduler]:
    """A scheduler with the tasks, of which nothing runs afterwards."""
    with self.cache.call():  # Its weights stay what they are meanwhile.
      scheduler = Scheduler(self.model, self.cache)
    try:
      for task in tasks:
        task.submit(
          scheduler,
          sampling,
          max_tokens=min(max_tokens, scheduler.most_tokens(task.ids.size)),
          salt=salt,
          stop_tokens=self._end_ids,
        )
      yield scheduler
    finally:
      # A stream that nobody can reach may be ended amid a call of another.
      for task in tasks:
        self.cache.when_free(partial(task.abandon, scheduler))

  def _close(
    self, scheduler: Scheduler, task: EngineTask, choose: SampleChoice
  ) -> None:
    """Ends all samples of a task; one of them is stored with its answer."""
    completions = tuple(answer.completion() for answer in task.answers)
    chosen = check_whole("choose: its result", choose(completions))
    if not 0 <= chosen < len(completions):
      raise ValueError(
        f"choose returned {chosen}; there are {len(completions)} samples."
      )
    task.chosen = chosen
    for sample, handle in enumerate(task.handles):
      keep: int | None = task.ids.size
      if sample == chosen:
        keep = self._repeated(task)
      with contextlib.suppress(ValueError):  # Somebody else has released it.
        scheduler.cancel(handle, keep=keep)
    task.open = []

  def _repeated(self, task: EngineTask) -> int | None:
    """How many tokens the next turn of a conversation would begin with.

    At least the prompt, which may be asked again; None for all. Where there are
    tools, one may speak next: many templates repeat thinking until the user
    does.
    """
    answer = task.answers[task.chosen]
    if task.messages is None:
      return None
    said = {"role": "assistant", "content": answer.text}
    past = np.concatenate([task.ids, np.array(answer.ids, np.int32)])
    turns = [_NEXT, _TOOL] if task.variables.get("tools") else [_NEXT]
    shared = []
    for turn in turns:
      # A template that takes no further turn drops nothing.
      with contextlib.suppress(ValueError):
        following = self.tokenizer.encode_chat(
          [*task.messages, said, turn], **task.variables
        )
        shared.append(_shared(past, following.ids))
    return max(task.ids.size, *shared) if shared else None


def _events(
  scheduler: Scheduler, tasks: Sequence[EngineTask]
) -> Iterator[tuple[EngineTask, int]]:
  """Steps until all tasks are complete; which sample of which task grew."""
  owners = {handle: task for task in tasks for handle in task.handles}
  while not all(task.complete for task in tasks):
    events = scheduler.step()
    if not events and not scheduler.active:
      raise CapacityError(
        "sequences of others hold the cache, and no prompt can begin; release "
        "them first."
      )
    for event in events:
      task = owners[event.handle]
      if not task.take(event):
        continue
      sample = task.handles.index(event.handle)
      ended = task.answers[sample].finish_reason is not None
      if ended and not isinstance(event, Finished):
        with contextlib.suppress(ValueError):  # Somebody else has ended it.
          scheduler.end(event.handle)
      yield task, sample


def _is_conversation(prompt: Any) -> bool:
  """Whether a prompt is a list of messages rather than of ids."""
  many = isinstance(prompt, Sequence) and len(prompt) > 0
  return many and isinstance(prompt[0], Mapping)


def _shared(first: np.ndarray, second: np.ndarray) -> int:
  """Leading ids that two rows share."""
  size = min(first.size, second.size)
  differs = np.flatnonzero(first[:size] != second[:size])
  return int(differs[0]) if differs.size else size
