"""Conversations in turn, under few slots, with and without what prompts keep.

What `benchmarks/conversations.py` measures and the tests compare.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.cache.index import Budget, State
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

CHUNK = 4
FIRST, PROMPT, ANSWER = 12 * CHUNK, 3 * CHUNK, 4 * CHUNK
TURNS, CONVERSATIONS, OPEN = 8, 60, 12
# Placement `last` goes with these; `index` asks a placement that weighs states.
EVICTIONS = ("fifo", "lru")
SLOTS = (8, 16, 32)
REGENERATED = (0.0, 0.3)


class Turn(NamedTuple):
  """One request of a conversation, in tokens."""

  prompt: list[int]
  answer: list[int]


def turns(regenerated: float, seed: int = 0) -> Iterator[Turn]:
  """Conversations in random turn, a few of them open at a time.

  Args:
    regenerated: Share of the turns that are asked once more at once.
    seed: Of everything random in it.
  """
  random = np.random.default_rng(seed)

  def ids(size: int) -> list[int]:
    return random.integers(0, 50_000, size).tolist()

  waiting = CONVERSATIONS - OPEN
  running = [[0, ids(FIRST)] for _ in range(OPEN)]
  while running:
    place = int(random.integers(len(running)))
    turn, past = running[place]
    past = past if turn == 0 else past + ids(PROMPT)
    if random.random() < regenerated:
      yield Turn(past, ids(ANSWER))
    answer = ids(ANSWER)
    yield Turn(past, answer)
    running[place] = [turn + 1, past + answer]
    if turn + 1 == TURNS:
      running.pop(place)
      if waiting:
        running.append([0, ids(FIRST)])
        waiting -= 1


class EndOnly(PrefixStore):
  """Keeps the end of a conversation only: what was superseded goes at once."""

  def __init__(self, *arguments, **named) -> None:
    super().__init__(*arguments, **named)
    self.index.demote = self._drop

  def _drop(self, states: Iterable[State]) -> None:
    for state in states:
      if state.alive and not state.pins:
        self.index.drop(state)


def saved(
  kind: type[PrefixStore], eviction: str, slots: int, regenerated: float
) -> float:
  """Share of the prompt tokens that a store makes unnecessary to compute."""
  budget = Budget(1 << 40, 1, 1, slots + 2, 1 << 30)
  planner = Planner(
    PlacementPolicy("last", chunk=CHUNK), depths=256, serving=True
  )
  store = kind(budget, planner, chunk=CHUNK, eviction=eviction)
  for prompt, answer in turns(regenerated):
    serve(store, Request.of_tokens(np.array(prompt, np.int32), CHUNK), answer)
  return store.counts.saved_tokens / store.counts.prompt_tokens


def compare(sizes: Sequence[int] = SLOTS) -> list[dict]:
  """Every eviction, number of slots and share of regenerated turns."""
  return [
    {
      "eviction": eviction,
      "slots": slots,
      "regenerated": regenerated,
      "saved": saved(PrefixStore, eviction, slots, regenerated),
      "saved_by_the_end_only": saved(EndOnly, eviction, slots, regenerated),
    }
    for eviction in EVICTIONS
    for slots in sizes
    for regenerated in REGENERATED
  ]
