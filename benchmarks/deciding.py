"""How long the host takes to match a prompt and to decide what to keep of it.

    python -m benchmarks.deciding [--length=131072] [--earlier=100,1000,10000]
        [--timed=200] [--capacity=60GiB] [--placement=adaptive]
        [--output=FILE.json]

A store without a model (bytes of Qwen3.5-0.8B in float32) has served so many
prompts of so many tokens; every one shares a document with others and leaves it
somewhere. Then more come, and what is timed of each is from its ids to `open`:
finding it, learning from it, choosing what to keep of it and what leaves for
it. Beside it stands what passes after that, while a device computes: `commit`
and `close`, with all that is learned seldom. Times are of the thread itself,
and depend on the machine and on who else uses it.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax import preset
from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.cache.choices import checked_policy
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.store_rules import (
  commit_all,
  make_store,
  move_if_due,
  store_planner,
)
from sparse_prefix_jax.placement import DEFAULT_CHUNK, PlacementPolicy

_TOKENS = flags.DEFINE_integer(
  "length", 131_072, "Tokens of a prompt.", 20 * DEFAULT_CHUNK
)
_ENTRIES = flags.DEFINE_list(
  "earlier", ["100", "1000", "10000"], "How many prompts came before."
)
_REQUESTS = flags.DEFINE_integer("timed", 200, "How many are timed.", 1)
_CAPACITY = flags.DEFINE_string("capacity", "60GiB", "Bytes of the store.")
_PLACEMENT = flags.DEFINE_string(
  "placement", "adaptive", "NAME or NAME:BUDGET."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file for the result.", allow_override=True
)

_PROMPTS_OF_A_DOCUMENT = 500


def prompts(tokens: int, entries: int, count: int) -> Iterator[np.ndarray]:
  """Prompts that share a document, and leave it anywhere, mostly late.

  Args:
    tokens: Of each.
    entries: One document belongs to 500 of so many prompts.
    count: How many come.

  Yields:
    Int32 ids, `tokens` of each.
  """
  rng = np.random.default_rng(0)
  blocks = tokens // DEFAULT_CHUNK
  documents = [
    rng.integers(2**31, size=blocks * DEFAULT_CHUNK, dtype=np.int32)
    for _ in range(max(1, entries // _PROMPTS_OF_A_DOCUMENT))
  ]
  for _ in range(count):
    prompt = documents[int(rng.integers(len(documents)))].copy()
    own = (1 + int(rng.geometric(0.02)) % (blocks // 2)) * DEFAULT_CHUNK
    prompt[-own:] = rng.integers(2**31, size=own, dtype=np.int32)
    yield prompt


def new_store(
  policy: PlacementPolicy, tokens: int, capacity: int
) -> PrefixStore:
  """A store as a server has it, for prompts of so many tokens.

  Args:
    policy: Where states go.
    tokens: Of the longest prompt.
    capacity: Bytes.
  """
  sizes = ModelSizes.of_model(preset("qwen3_5_0_8b"), DEFAULT_CHUNK)
  planner = store_planner(policy, sizes, depths=tokens // DEFAULT_CHUNK + 1)
  return make_store(planner, sizes, capacity_bytes=capacity, longest=tokens)


def timed(store: PrefixStore, prompt: np.ndarray) -> tuple[float, float]:
  """Milliseconds until a prompt is opened, and of the rest of its life.

  Args:
    store: Changed as a server's would be.
    prompt: Ids.
  """
  if isinstance(store.chooser, ShareChooser):
    move_if_due(store, store.chooser)
  start = time.thread_time()
  request = Request.of_tokens(prompt, DEFAULT_CHUNK)
  (running,) = store.open([request])
  opened = time.thread_time()
  commit_all(store, running)
  store.close(running)
  return 1e3 * (opened - start), 1e3 * (time.thread_time() - opened)


def row_of(
  policy: PlacementPolicy,
  *,
  tokens: int,
  capacity: int,
  entries: int,
  requests: int,
) -> dict[str, Any]:
  """What opening a prompt takes after so many others.

  Args:
    policy: Where states go.
    tokens: Of each prompt.
    capacity: Bytes of the store.
    entries: Prompts that come first.
    requests: Prompts that are timed.
  """
  store = new_store(policy, tokens, capacity)
  times = [
    timed(store, prompt)
    for prompt in prompts(tokens, entries, entries + requests)
  ]
  opened, beside = np.array(times[entries:]).T
  return {
    "entries": entries,
    "open_milliseconds": {
      name: round(float(np.quantile(opened, q)), 3)
      for name, q in (("median", 0.5), ("p99", 0.99), ("max", 1.0))
    },
    "beside_milliseconds": round(float(beside.mean()), 3),
    "states_stored": store.stats().stored_states,
    "states_evicted": store.stats().evicted_states,
  }


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    counts = command_line.whole_numbers(_ENTRIES)
    policy = checked_policy(_PLACEMENT.value, DEFAULT_CHUNK, None)
    capacity = parse_bytes(_CAPACITY.value, name="capacity")
    command_line.writable(_OUTPUT)
    measured = functools.partial(
      row_of, policy, tokens=_TOKENS.value, capacity=capacity
    )
    measured(entries=0, requests=1)  # Does one fit?
  rows = []
  for entries in counts:
    rows.append(measured(entries=entries, requests=_REQUESTS.value))
    print(rows[-1], flush=True)
  if _OUTPUT.value:
    result = {"tokens": _TOKENS.value, "placement": _PLACEMENT.value}
    write_result(_OUTPUT.value, result | {"rows": rows})


if __name__ == "__main__":
  app.run(main)
