"""What tokens tell of where prompts will be left, by where markers stand.

    python -m benchmarks.marked [--seeds=4] [--output=FILE.json]

Thirty documents with nine questions each, in random order: ids drawn from a
skewed distribution, and between them the markers of a template. Layouts differ
in where those stand besides between document and question. Printed is what one
state per entry saves (`conditional:1`, 60 entries) of what one every 64 tokens
saves, over the second half and over all requests, and the percent of prompt
tokens that `adaptive` saves in 1 GiB of Qwen3.5-0.8B in float32; each with what
is gained by looking at tokens, on average over seeds and where it is least.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from absl import app, flags

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax import preset
from sparse_prefix_jax.evaluation import Capacity, ModelSizes, simulate
from sparse_prefix_jax.placement import Conditional, PlacementPolicy
from sparse_prefix_jax.placement.cue_learner import CueLearner
from sparse_prefix_jax.workloads import Trace, interleave, token_trace

_SEEDS = flags.DEFINE_integer("seeds", 4, "Streams of each layout.", 1)
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file for the result.", allow_override=True
)

_DOCUMENTS, _QUESTIONS, _VOCABULARY = 30, 9, 400
_MARK, _HEADER, _END = [390, 391], [380, 395, 7], [1, 2]

Ids = list[int]


class Text:
  """Texts of one stream.

  Args:
    seed: Chooses the ids.
  """

  def __init__(self, seed: int) -> None:
    """Has drawn nothing yet."""
    odds = 1 / np.arange(3, _VOCABULARY + 3)
    self.draws = np.random.default_rng(seed)
    self._odds = odds / odds.sum()
    self.headers = [self(200, 900) for _ in range(3)]

  def __call__(self, least: int, below: int) -> Ids:
    """Returns ids of a length that is drawn."""
    size = int(self.draws.integers(least, below))
    return self.draws.choice(_VOCABULARY, size, p=self._odds).tolist()

  def paragraphs(self, mark: Ids) -> Ids:
    """Returns three to eleven texts, each with a marker behind it."""
    count = int(self.draws.integers(3, 12))
    return [i for _ in range(count) for i in self(150, 500) + mark]

  def header(self) -> Ids:
    """Returns one of three texts."""
    return self.headers[int(self.draws.integers(3))]


class Layout(NamedTuple):
  """How a prompt is made.

  Attributes:
    shared: What the questions of a document share.
    own: What stands behind it.
  """

  shared: Callable[[Text], Ids]
  own: Callable[[Text], Ids]


LAYOUTS: Mapping[str, Layout] = {
  "no marker": Layout(
    lambda text: text(600, 4000), lambda text: text(20, 400) + _END
  ),
  "no marker, equal lengths": Layout(
    lambda text: text(2000, 2001), lambda text: text(200, 201) + _END
  ),
  "between": Layout(
    lambda text: text(600, 4000) + _MARK, lambda text: text(20, 400) + _END
  ),
  "between, equal lengths": Layout(
    lambda text: text(1998, 1999) + _MARK, lambda text: text(200, 201) + _END
  ),
  "and behind": Layout(
    lambda text: text(600, 4000) + _MARK, lambda text: text(20, 400) + _MARK
  ),
  "and behind, equal lengths": Layout(
    lambda text: text(1998, 1999) + _MARK, lambda text: text(200, 201) + _MARK
  ),
  "and behind, with more text": Layout(
    lambda text: text(600, 4000) + _MARK,
    lambda text: text(20, 400) + _MARK + text(20, 400),
  ),
  "and in front": Layout(
    lambda text: _MARK + text(600, 4000) + _MARK,
    lambda text: text(20, 400) + _END,
  ),
  "and behind, any number": Layout(
    lambda text: text(600, 4000) + _MARK,
    lambda text: (
      text(20, 400)
      + [
        i for _ in range(text.draws.integers(4)) for i in _MARK + text(30, 200)
      ]
    ),
  ),
  "and behind paragraphs": Layout(
    lambda text: text.paragraphs(_MARK), lambda text: text(20, 400) + _MARK
  ),
  "and another behind paragraphs": Layout(
    lambda text: text.paragraphs(_HEADER) + _MARK,
    lambda text: text(20, 400) + _MARK,
  ),
  "and another behind a header": Layout(
    lambda text: text.header() + _HEADER + text(600, 3000) + _MARK,
    lambda text: text(20, 400) + _END,
  ),
  "and behind a header": Layout(
    lambda text: text.header() + _MARK + text(600, 3000) + _MARK,
    lambda text: text(20, 400) + _MARK,
  ),
}


def stream(layout: Layout, seed: int) -> Trace:
  """The requests of a layout.

  Args:
    layout: How they are made.
    seed: Chooses ids and order.
  """
  text = Text(seed)
  shared = [layout.shared(text) for _ in range(_DOCUMENTS)]
  groups = np.repeat(np.arange(_DOCUMENTS), _QUESTIONS)
  groups = text.draws.permutation(groups).tolist()
  rows = [np.array(shared[g] + layout.own(text), np.int64) for g in groups]
  return interleave(token_trace("marked", rows, groups), seed)


def saved(trace: Trace) -> list[float]:
  """Percent of what is there to save, by the three measures.

  Args:
    trace: The requests.
  """
  one, dense = PlacementPolicy("conditional", 1), PlacementPolicy("block", 64)
  entries = Capacity("sequences", 60)
  found = []
  for warm in (0.5, 0.0):
    few, most = (
      simulate(trace, policy, entries, warmup_fraction=warm).tokens_saved
      for policy in (one, dense)
    )
    found.append(100 * few / most)
  report = simulate(
    trace,
    PlacementPolicy("adaptive"),
    Capacity("bytes", 1 << 30),
    sizes=ModelSizes.of_model(preset("qwen3_5_0_8b"), 64),
    state_share="undivided",
  )
  return [*found, 100 * report.saved_fraction]


def row_of(name: str, seeds: int) -> dict[str, Any]:
  """What is saved of a layout, and gained by looking at tokens.

  Args:
    name: A key of `LAYOUTS`.
    seeds: How many streams of it.
  """
  traces = [stream(LAYOUTS[name], seed) for seed in range(seeds)]
  told = np.array([saved(trace) for trace in traces])
  with ExitStack() as blind:
    for kind in (Conditional, CueLearner):
      blind.enter_context(mock.patch.object(kind, "cue", return_value=0))
    gained = told - [saved(trace) for trace in traces]
  return {
    "markers": name,
    "saved": told.mean(axis=0).round(2).tolist(),
    "gained": gained.mean(axis=0).round(2).tolist(),
    "least": gained.min(axis=0).round(2).tolist(),
  }


def main(argv: list[str]) -> None:
  """Replays all layouts, prints, and keeps the result where asked."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
    seeds = _SEEDS.value
  rows = []
  for name in LAYOUTS:
    rows.append(row_of(name, seeds))
    print(rows[-1], flush=True)
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"seeds": seeds, "rows": rows})


if __name__ == "__main__":
  app.run(main)
