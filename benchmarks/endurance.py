"""Thousands of requests in a row: time per request and memory of the host.

    python -m benchmarks.endurance [--requests=5000]
        [--placement=last,conditional:1,adaptive]
        [--stream=short --stream=documents] [--output=FILE.json]

Drives a prefix store without a model: what grows in a server besides its arrays
grows here. Bytes are those of Python's allocator, compared with what the store
counts of what it remembers.
"""

import gc
import statistics
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import command_line
from benchmarks.record import write_result
from sparse_prefix_jax.cache.choices import checked_policy
from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.store_rules import serve
from sparse_prefix_jax.placement import PlacementPolicy, Planner

_REQUESTS = flags.DEFINE_integer("requests", 5000, "How many in a row.", 100)
_PLACEMENT = flags.DEFINE_list(
  "placement",
  ["last", "conditional:1", "adaptive"],
  "Placements, each with its budget behind a colon where it has one.",
)
_STREAM = flags.DEFINE_multi_enum(
  "stream", ["short", "documents"], ["short", "documents"], "Which prompts."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

CHUNK = 64
LIMIT = 4 << 20  # bytes of host memory that may be remembered


def short(random: np.random.Generator) -> Iterator[np.ndarray]:
  """Prompts that share nothing and hold no chunk."""
  while True:
    yield random.integers(0, 50_000, random.integers(1, 63))


def documents(random: np.random.Generator) -> Iterator[np.ndarray]:
  """Questions about ever new documents."""
  while True:
    document = random.integers(0, 50_000, 2000)
    for _ in range(8):
      yield np.append(document, random.integers(0, 50_000, 40))


def endure(kind, policy: PlacementPolicy) -> dict:
  """Serves them all; seconds of the first and last tenth, and bytes."""
  room = Budget(
    1 << 40, 1, 1, 300, 6000, remembered_bytes=LIMIT, learned_bytes=LIMIT
  )
  gc.collect()
  tracemalloc.start()
  before = tracemalloc.get_traced_memory()[0]
  planner = Planner(policy, depths=256, serving=True, background=False)
  store = PrefixStore(room, planner, chunk=CHUNK)
  stream, seconds, half = kind(np.random.default_rng(0)), [], 0
  for number in tqdm(range(_REQUESTS.value), kind.__name__, leave=False):
    request = Request.of_tokens(next(stream).astype(np.int32), CHUNK)
    start = time.process_time()
    serve(store, request, answer=range(5))
    seconds.append(time.process_time() - start)
    if number == _REQUESTS.value // 2:
      gc.collect()
      half = tracemalloc.get_traced_memory()[0] - before
  del request
  gc.collect()
  held = tracemalloc.get_traced_memory()[0] - before
  tracemalloc.stop()
  stats = store.stats()
  tenth = len(seconds) // 10
  return {
    "stream": kind.__name__,
    "placement": policy.name,
    "milliseconds_second_tenth": 1e3
    * statistics.median(seconds[tenth:][:tenth]),
    "milliseconds_last_tenth": 1e3 * statistics.median(seconds[-tenth:]),
    "bytes_at_half": half,
    "bytes_at_the_end": held,
    "bytes_counted_as_remembered": stats.remembered_bytes,
    "bytes_counted_as_learned": stats.learned_bytes,
  }


def main(argv: list[str]) -> None:
  """Measures, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
    policies = [checked_policy(name, CHUNK, None) for name in _PLACEMENT.value]
  streams = {"short": short, "documents": documents}
  kinds = [streams[name] for name in _STREAM.value]
  rows = [endure(kind, policy) for kind in kinds for policy in policies]
  for row in rows:
    print(
      f"{row['stream']}, {row['placement']}: "
      f"{row['milliseconds_second_tenth']:.3f} ms a request, "
      f"{row['milliseconds_last_tenth']:.3f} at the end; "
      f"{row['bytes_at_half'] / 2**20:.1f} MiB half way, "
      f"{row['bytes_at_the_end'] / 2**20:.1f} at the end, "
      f"{row['bytes_counted_as_remembered'] / 2**20:.1f} counted as "
      f"remembered, {row['bytes_counted_as_learned'] / 2**20:.1f} as learned"
    )
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
