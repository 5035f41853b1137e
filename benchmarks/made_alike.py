"""What `adaptive` saves of prompts that are made alike.

    python -m benchmarks.made_alike [--seed=3]

Four streams of blocks of 512 tokens: sets of examples that come and go, with
questions of any length behind them; examples picked one by one from a pool that
changes; short and very long documents, whole or cut; files that are edited in
their middle. Printed is the percent of what no policy can exceed.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from benchmarks import command_line, policy_table
from sparse_prefix_jax.workloads import Trace, TraceRequest

_SEED = flags.DEFINE_integer("seed", 3, "Chooses what is drawn.", 0)

_BLOCK = 512
_REQUESTS = 2500
_SIZES = (6, 8, 10, 150, 200, 300)

Draws = np.random.Generator
Blocks = Iterator[int]


def _new(blocks: Blocks, count: int) -> list[int]:
  """So many blocks that nobody has had before."""
  return list(itertools.islice(blocks, count))


def example_sets(draws: Draws, blocks: Blocks) -> Iterator[list[int]]:
  """One of 30 sets of 20 blocks; every twelfth request one is replaced."""
  header = _new(blocks, 4)
  sets = [_new(blocks, 20) for _ in range(30)]
  for number in range(_REQUESTS):
    if number % 12 == 0:
      sets[draws.integers(30)] = _new(blocks, 20)
    question = _new(blocks, int(draws.integers(1, 13)))
    yield header + sets[draws.integers(30)] + question


def picked_examples(draws: Draws, blocks: Blocks) -> Iterator[list[int]]:
  """Six neighbours of a ring of 40 examples; every tenth request one is new."""
  header = _new(blocks, 4)
  ring = [_new(blocks, 3) for _ in range(40)]
  for number in range(_REQUESTS):
    if number % 10 == 0:
      ring[draws.integers(40)] = _new(blocks, 3)
    first = int(draws.integers(40))
    picked = [ring[(first + step) % 40] for step in range(6)]
    question = _new(blocks, int(draws.integers(1, 9)))
    yield [*header, *itertools.chain(*picked), *question]


def documents(draws: Draws, blocks: Blocks) -> Iterator[list[int]]:
  """One of 25 documents of 6 to 300 blocks, whole or cut, and a question."""
  known = [_new(blocks, int(draws.choice(_SIZES))) for _ in range(25)]
  for number in range(_REQUESTS):
    if number % 20 == 0:
      known[draws.integers(25)] = _new(blocks, int(draws.choice(_SIZES)))
    one = known[draws.integers(25)]
    cut = int(len(one) * draws.choice((1.0, 1.0, 0.75, 0.5)))
    yield one[:cut] + _new(blocks, int(draws.integers(1, 8)))


def edited_files(draws: Draws, blocks: Blocks) -> Iterator[list[int]]:
  """Three files; each request has changed one block of one, often amid it."""
  files = [_new(blocks, int(draws.integers(20, 60))) for _ in range(3)]
  for _ in range(_REQUESTS):
    one = int(draws.integers(3))
    size = len(files[one])
    at = min(size - 1, int(draws.triangular(0, 0.6 * size, size)))
    files[one][at : at + 1] = _new(blocks, 1)
    if draws.random() < 0.01:
      files[one] = _new(blocks, int(draws.integers(20, 60)))
    yield files[one] + _new(blocks, 2)


_STREAMS = (
  (example_sets, (40, 160)),
  (picked_examples, (40, 160)),
  (documents, (40, 160)),
  (edited_files, (4, 12)),
)


def main(argv: list[str]) -> None:
  """Replays the four streams, and prints."""
  with command_line.one_sentence(argv):
    seed = _SEED.value
  for prompts_of, slots in _STREAMS:
    name = prompts_of.__name__
    requests = tuple(
      TraceRequest(np.array(p, np.int32), _BLOCK * len(p) + 7, 0, number)
      for number, p in enumerate(
        prompts_of(np.random.default_rng(seed), itertools.count())
      )
    )
    for states in slots:
      case = policy_table.Case(Trace(name, requests, _BLOCK), (states,))
      print(f"{name}, {states} states: {policy_table.percent(case):.2f}")


if __name__ == "__main__":
  app.run(main)
