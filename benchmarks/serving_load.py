"""Users who arrive when they like, and a server that has a clock.

`arrivals` draws who asks what and when: questions about shared documents, and
conversations that go on with the answers that they got. `serve` drives a
`Scheduler` with them, or whoever else answers, and writes down when everybody
had what.
"""

import abc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sparse_prefix_jax import (
  Finished,
  HybridDecoder,
  PrefixCache,
  Scheduler,
  Started,
  TokenEvent,
)


class Load(NamedTuple):
  """What is asked, beside how often.

  Attributes:
    documents: How many there are.
    document: Tokens of each.
    question: Tokens of a question, and of a turn of a conversation.
    answer: Tokens of an answer.
    opening: Tokens that a conversation begins with.
    conversations: How many are open at a time.
    turns: After so many a conversation is over and another one begins.
    talking: Share of the requests that belong to conversations.
    vocabulary: Ids are below it.
  """

  documents: int = 8
  document: int = 1024
  question: int = 48
  answer: int = 16
  opening: int = 512
  conversations: int = 8
  turns: int = 6
  talking: float = 0.4
  vocabulary: int = 512

  @property
  def longest(self) -> int:
    """Tokens of the longest prompt with its answer."""
    talk = self.opening + self.turns * (self.question + self.answer)
    return max(self.document + self.question + self.answer, talk)


class Arrival(NamedTuple):
  """One request.

  Attributes:
    number: In order of time.
    at: Seconds after the beginning.
    prompt: What is asked; in a conversation, behind all that was said.
    conversation: Number of the conversation; None for a question.
    ends: Whether it is the last turn.
  """

  number: int
  at: float
  prompt: np.ndarray
  conversation: int | None
  ends: bool


def arrivals(
  load: Load, rate: float, seconds: float, seed: int = 0
) -> Iterator[Arrival]:
  """Draws requests of a Poisson process, the same for everybody who serves.

  Args:
    load: What is asked.
    rate: Requests a second.
    seconds: How long they arrive.
    seed: Of everything random in it.

  Yields:
    Arrivals, in order of time.
  """
  # What is asked does not depend on how often.
  times, random = np.random.default_rng(seed), np.random.default_rng(seed + 1)

  def ids(size: int) -> np.ndarray:
    return random.integers(0, load.vocabulary, size).astype(np.int32)

  documents = [ids(load.document) for _ in range(load.documents)]
  turn, talks = [0] * load.conversations, list(range(load.conversations))
  at, number = times.exponential(1 / rate), 0
  while at < seconds:
    if random.random() >= load.talking:
      document = documents[random.integers(load.documents)]
      prompt = np.append(document, ids(load.question))
      yield Arrival(number, at, prompt, None, False)
    else:
      place = int(random.integers(load.conversations))
      said = ids(load.question if turn[place] else load.opening)
      turn[place] += 1
      ends = turn[place] == load.turns
      yield Arrival(number, at, said, talks[place], ends)
      if ends:
        turn[place], talks[place] = 0, max(talks) + 1
    at, number = at + times.exponential(1 / rate), number + 1


class Served(NamedTuple):
  """When one request had what.

  Attributes:
    number: Of its arrival.
    arrived: Seconds; of a turn, when the turn before it was answered too.
    first: When its first id was told.
    last: When its last one was.
    restored: Tokens of its prompt that were restored.
    computed: Tokens of its prompt that were not.
    ids: Its answer.
  """

  number: int
  arrived: float
  first: float
  last: float
  restored: int
  computed: int
  ids: tuple[int, ...]


class Answering(abc.ABC):
  """Who answers, and the conversations that its users have.

  Attributes:
    served: What was answered, in the order in which it was finished.
  """

  def __init__(self) -> None:
    self._past: dict[int, np.ndarray] = {}
    self._talking: set[int] = set()
    self.served: list[Served] = []

  @property
  @abc.abstractmethod
  def idle(self) -> bool:
    """Whether nobody waits for anything."""

  @abc.abstractmethod
  def submit(self, arrival: Arrival, now: float) -> None:
    """A request begins to wait."""

  @abc.abstractmethod
  def step(self, now: Callable[[], float]) -> None:
    """Computes a little, and notes what it told and when."""

  def ready(self, arrival: Arrival) -> bool:
    """Whether nothing that it goes on from is still being answered."""
    return arrival.conversation not in self._talking

  def begin(self, arrival: Arrival, now: float) -> dict[str, Any]:
    """What is noted of a request: in a conversation, behind what was said."""
    prompt, talk = arrival.prompt, arrival.conversation
    if talk is not None:
      prompt = np.concatenate([self._past.pop(talk, prompt[:0]), prompt])
      self._talking.add(talk)
    return {"arrival": arrival, "prompt": prompt, "arrived": now, "ids": []}

  def finish(self, asked: dict[str, Any], last: float) -> None:
    """A request has its last id."""
    arrival, ids = asked["arrival"], tuple(asked["ids"])
    talk = arrival.conversation
    if talk is not None:
      self._talking.discard(talk)
      if not arrival.ends:
        self._past[talk] = np.concatenate([asked["prompt"], ids]).astype(
          np.int32
        )
    times = asked["arrived"], asked["first"], last
    prompt = asked["restored"], asked["computed"]
    self.served.append(Served(arrival.number, *times, *prompt, ids))


class Server(Answering):
  """A scheduler.

  Args:
    model: What answers.
    cache: A fresh one.
    answer: Ids of an answer.
    token_budget: Tokens of prompts in a step.
  """

  def __init__(
    self,
    model: HybridDecoder,
    cache: PrefixCache,
    answer: int,
    token_budget: int,
  ) -> None:
    super().__init__()
    self.scheduler = Scheduler(model, cache, token_budget=token_budget)
    self._answer = answer
    self._running: dict[object, dict[str, Any]] = {}

  @property
  def idle(self) -> bool:
    """Whether nobody waits for anything."""
    return self.scheduler.idle

  def submit(self, arrival: Arrival, now: float) -> None:
    """A request begins to wait."""
    asked = self.begin(arrival, now)
    handle = self.scheduler.submit(asked["prompt"], max_tokens=self._answer)
    self._running[handle] = asked

  def step(self, now: Callable[[], float]) -> None:
    """One step, and what it told, at the time when it was told."""
    for event in self.scheduler.step():
      asked = self._running[event.handle]
      if isinstance(event, Started):
        asked |= {"restored": event.restored, "computed": event.computed}
      if isinstance(event, TokenEvent):
        asked.setdefault("first", now())
        asked["ids"].append(event.id)
      if isinstance(event, Finished):
        self.finish(self._running.pop(event.handle), now())


def serve(
  server: Answering, stream: Iterable[Arrival], patience: float
) -> list[Served]:
  """Serves a stream in real time.

  Args:
    server: Who serves.
    stream: Who arrives when.
    patience: Seconds after the last arrival; what is not finished then is not
      among the results.

  Returns:
    What was served, in the order in which it was finished.
  """
  waiting, start = list(stream), time.monotonic()
  end = (waiting[-1].at if waiting else 0.0) + patience

  def now() -> float:
    return time.monotonic() - start

  while (waiting or not server.idle) and now() < end:
    # Turns of one conversation stay in order: those before go first.
    held: set[int | None] = set()
    left = []
    for arrival in waiting:
      talk = arrival.conversation
      due = arrival.at <= now() and talk not in held and server.ready(arrival)
      if due:
        server.submit(arrival, arrival.at if talk is None else now())
      else:
        left.append(arrival)
        if talk is not None:
          held.add(talk)
    waiting = left
    if server.idle:
      time.sleep(max(0.0, min(waiting[0].at - now(), 0.05)) if waiting else 0)
    else:
      server.step(now)
  return server.served


def summary(served: list[Served], asked: int) -> Mapping[str, float]:
  """Percentiles, rates and shares of what was served.

  Args:
    served: What was.
    asked: How many arrived.
  """
  if not served:
    return {"answered": 0.0}
  waited = np.array([x.first - x.arrived for x in served])
  each = [(x.last - x.first) / max(len(x.ids) - 1, 1) for x in served]
  tokens = sum(len(x.ids) for x in served)
  restored = sum(x.restored for x in served)
  prompts = restored + sum(x.computed for x in served)
  return {
    "answered": len(served) / asked,
    "first_token_p50": float(np.percentile(waited, 50)),
    "first_token_p95": float(np.percentile(waited, 95)),
    "per_token_p50": float(np.median(each)),
    "tokens_per_second": tokens / max(x.last for x in served),
    "prompt_tokens": prompts,
    "restored_share": restored / prompts,
  }
