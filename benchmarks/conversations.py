"""What a prompt's states cost a conversation that simply goes on.

    python -m benchmarks.conversations [--output=FILE.json]

Open conversations take turns under few slots. A prompt's own state is of use
when an answer is regenerated or a message edited, and of none when the
conversation goes on from its end; it is on probation until it is hit. Compared,
on the same stream, with a store that drops it as soon as the answer is stored.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax.cache.index import EVICTIONS, Budget, State
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

CHUNK = 4
FIRST, PROMPT, ANSWER = 12 * CHUNK, 3 * CHUNK, 4 * CHUNK
TURNS, CONVERSATIONS, OPEN = 8, 60, 12
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


def main(argv: list[str]) -> None:
  """Compares, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  rows = compare()
  for row in rows:
    lost = row["saved_by_the_end_only"] - row["saved"]
    print(
      f"{row['eviction']:5s} {row['slots']:3d} slots, "
      f"{row['regenerated']:4.0%} regenerated: saved {row['saved']:.4f}, "
      f"end only {row['saved_by_the_end_only']:.4f}, lost {lost:+.4f}"
    )
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
