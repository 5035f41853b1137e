"""What an engine returns, and how an answer grows."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sparse_prefix_jax.cache.index import Reason
from sparse_prefix_jax.serving.text.detokenizer import Detokenizer
from sparse_prefix_jax.serving.text.stop_strings import StopScanner
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer


class BestIds(NamedTuple):
  """The most probable ids at one position.

  Attributes:
    ids: Most probable first.
    logprobs: Their log probabilities.
    texts: What each would have added to the text, had it been chosen.
  """

  ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sample.

  Attributes:
    text: Up to the stop string or the end.
    ids: All that were drawn, those of a stop string or an end among them.
    logprobs: Log probability of each.
    best: The most probable ids at each, where they were asked for.
    finish_reason: "stop", or "length" where there was no more room.
  """

  text: str
  ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  best: tuple[BestIds, ...]
  finish_reason: str


@dataclasses.dataclass(frozen=True)
class Generation:
  """What came of one prompt.

  Attributes:
    completions: Its samples.
    chosen: Which of them is stored with its answer.
    prompt_ids: Of the prompt.
    restored: Tokens of the prompt whose state was kept.
    computed: Tokens of the prompt that were computed.
    reason: Why not more of them were restored.
  """

  completions: tuple[Completion, ...]
  chosen: int
  prompt_ids: tuple[int, ...]
  restored: int
  computed: int
  reason: Reason

  @property
  def text(self) -> str:
    """The text of the chosen sample."""
    return self.completions[self.chosen].text


@dataclasses.dataclass(frozen=True)
class Delta:
  """What is new of one sample.

  Attributes:
    text: What follows; never has to be taken back.
    ids: Those drawn since the delta before, but for those at the end whose text
      waits.
    texts: What each adds to the text; those of all deltas in a row are the
      text. Empty where an id ends amid a character.
    logprobs: Log probability of each.
    best: The most probable ids at each, where they were asked for.
    sample: Which of the samples.
    finish_reason: None until the last delta of a sample.
    restored: Tokens of the prompt whose state was kept.
    computed: Tokens of the prompt that were computed.
  """

  text: str
  ids: tuple[int, ...]
  texts: tuple[str, ...]
  logprobs: tuple[float, ...]
  best: tuple[BestIds, ...]
  sample: int
  finish_reason: str | None
  restored: int
  computed: int


class GrowingAnswer:
  """An answer, id by id.

  Attributes:
    text: What is certain of its text.
    ids: All ids so far.
    logprobs: Log probability of each.
    best: The most probable ids at each.
    finish_reason: None as long as it grows.
    judged: Whether a stop string may end it, so that every id has to be seen
      before the next one is computed.

  Example:
    >>> from sparse_prefix_jax.workloads.recall.tokenizer import (
    ...   recall_tokenizer,
    ... )
    >>> tokenizer = TextTokenizer(recall_tokenizer())
    >>> answer = GrowingAnswer(tokenizer, [" ."], end_ids=())
    >>> for token in tokenizer.encode("In Oslo . Where").tolist():
    ...   answer.add(token, -0.1)
    >>> answer.text, answer.finish_reason
    ('In Oslo', 'stop')
  """

  def __init__(
    self,
    tokenizer: TextTokenizer,
    stops: Sequence[str],
    end_ids: Iterable[int],
  ) -> None:
    """Begins with nothing.

    Args:
      tokenizer: Of the ids.
      stops: Stop strings.
      end_ids: Ids that end it and have no text.
    """
    self.text = ""
    self.ids: list[int] = []
    self.logprobs: list[float] = []
    self.best: list[BestIds] = []
    self.finish_reason: str | None = None
    self.judged = bool(stops)
    self._pieces = Detokenizer(tokenizer)
    self._stops = StopScanner(stops)
    self._end_ids = frozenset(end_ids)
    # Characters up to the end of each id, before a stop string cuts any off,
    # and the last id that has a text.
    self._ends: list[int] = []
    self._last = 0
    self._told = (0, 0)

  def add(
    self, token: int, logprob: float, best: Sequence[tuple[int, float]] = ()
  ) -> None:
    """Adds an id; a stop string may end the answer with it.

    Args:
      token: The id.
      logprob: Its log probability.
      best: The most probable ids with theirs.
    """
    if self.finish_reason is not None:
      return
    self.ids.append(token)
    self.logprobs.append(logprob)
    if best:
      ids, logprobs = zip(*best, strict=True)
      texts = tuple(map(self._peek, ids))
      self.best.append(BestIds(ids, logprobs, texts))
    self._ends.append(self._ends[-1] if self._ends else 0)
    if token not in self._end_ids:
      self._last = len(self.ids) - 1
      self._write(self._pieces.push(token))

  def finish(self, why: str) -> None:
    """Ends the answer, unless a stop string has.

    Args:
      why: "stop" or "length".
    """
    if self.finish_reason is None:
      self._write(self._pieces.finish())
    if self.finish_reason is None:
      self.text += self._stops.finish()
      self.finish_reason = why

  def completion(self) -> Completion:
    """The answer as a result, once it has ended."""
    return Completion(
      text=self.text,
      ids=tuple(self.ids),
      logprobs=tuple(self.logprobs),
      best=tuple(self.best),
      finish_reason=self.finish_reason or "length",
    )

  def delta(self, sample: int, restored: int, computed: int) -> Delta | None:
    """What is new since the last call.

    Args:
      sample: Which sample it is.
      restored: Tokens of the prompt.
      computed: The others of the prompt.

    Returns:
      None as long as there is neither text nor an end.
    """
    characters, ids = self._told
    text = self.text[characters:]
    if not text and self.finish_reason is None:
      return None
    until = self._certain(ids)
    self._told = (len(self.text), until)
    return Delta(
      text=text,
      ids=tuple(self.ids[ids:until]),
      texts=tuple(map(self._text_of, range(ids, until))),
      logprobs=tuple(self.logprobs[ids:until]),
      best=tuple(self.best[ids:until]),
      sample=sample,
      finish_reason=self.finish_reason,
      restored=restored,
      computed=computed,
    )

  def _certain(self, told: int) -> int:
    """How many ids there are whose text is certain; in the end all."""
    if self.finish_reason is not None:
      return len(self.ids)
    while told < len(self.ids) and self._ends[told] <= len(self.text):
      told += 1
    return told

  def _text_of(self, index: int) -> str:
    """What an id adds to the text; nothing behind a stop string."""
    start = self._ends[index - 1] if index else 0
    return self.text[start : self._ends[index]]

  def _peek(self, token: int) -> str:
    """What an id would add."""
    return "" if token in self._end_ids else self._pieces.peek(token)

  def _write(self, text: str) -> None:
    """Adds text of the last id that has any, up to a stop string."""
    for index in range(self._last, len(self._ends)):
      self._ends[index] += len(text)
    self.text += self._stops.push(text)
    if self._stops.stopped is not None:
      self.finish_reason = "stop"
