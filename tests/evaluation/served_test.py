"""Served is simulated: one script of calls drives a server and a bare store.

After every call both have found, captured, evicted and held the same, for every
placement and eviction, from comfortable to starving capacities.
"""

import numpy as np
import pytest

from sparse_prefix_jax import PrefixCache, decode, prefill
from sparse_prefix_jax.cache.index import EVICTIONS, CapacityError
from sparse_prefix_jax.cache.request import check_requests
from sparse_prefix_jax.cache.waves import next_wave
from sparse_prefix_jax.evaluation import Capacity, ModelSizes, simulate
from sparse_prefix_jax.evaluation.store_rules import (
  commit_all,
  make_store,
  move_if_due,
  store_planner,
)
from sparse_prefix_jax.placement import SHARED, PlacementPolicy
from sparse_prefix_jax.workloads import Trace, TraceRequest
from tests.models_for_tests import small_config, small_model

# Long replays on the host: checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked_types")

CHUNK = 16
CONFIG = small_config()
SIZES = ModelSizes.of_model(CONFIG, CHUNK)
PLACEMENTS = {
  "no_cache": None,
  "last": None,
  "block": 32,
  "balanced": 2,
  "sqrt": None,
  "dyadic": 16,
  "dp": 2,
  "optimal": 2,
  "conditional": 1,
  "adaptive": None,
}
OTHERS = {("fifo", name) for name in PLACEMENTS if name != "last"}
# One placement is enough to see that both evict alike: the others have one rule
# in the usual run, and a second in the slow one.
RULES = [
  pytest.param(
    name,
    eviction,
    marks=pytest.mark.slow if (eviction, name) in OTHERS else (),
  )
  for name in PLACEMENTS
  for eviction in EVICTIONS
  if (name in SHARED) == (eviction == "index")
  and (eviction in ("fifo", "lru", "index") or name == "last")
]


def ids(random, size):
  return random.integers(0, 512, size).tolist()


def documents(random):
  """Questions about documents, some in batches, with short answers."""
  texts = [ids(random, size) for size in (70, 100, 45)]
  for _ in range(8):
    batch = [
      texts[random.integers(3)] + ids(random, random.integers(1, 20))
      for _ in range(random.integers(1, 4))
    ]
    yield "batch", batch, [ids(random, random.integers(0, 6)) for _ in batch]


def conversations(random):
  """Two conversations in turn; an answer may be regenerated or forked."""
  pasts = [ids(random, 30), ids(random, 50)]
  for turn in range(6):
    past = pasts[turn % 2]
    past += ids(random, 15)
    kind = ("one", "fork", "again")[turn % 3]
    answer = ids(random, 20)
    yield kind, [list(past)], [answer]
    past += answer


def short_prompts(random):
  """Prompts around the length of a chunk."""
  for size in (3, 15, 16, 17, 31, 32, 33, 16, 17, 5, 32):
    prompt = list(range(size))
    yield "one", [prompt], [ids(random, random.integers(0, 4))]


STREAMS = (documents, conversations, short_prompts)


class Server:
  """The calls of a script on a cache with a model."""

  def __init__(self, policy, capacity, eviction):
    self.cache = PrefixCache(
      small_model(), capacity=capacity, placement=policy, eviction=eviction
    )
    self.store = self.cache.store

  def prefill(self, prompts):
    out = prefill(small_model(), self.cache, prompts)
    found = [(r.overlap, r.resumed, r.captured, r.reason) for r in out.reports]
    return list(out.sequences), found

  def decode(self, sequence, token):
    return decode(small_model(), self.cache, [sequence], [token]).sequences[0]

  def fork(self, sequence):
    return self.cache.fork(sequence)

  def release(self, sequence, keep=None):
    self.cache.release([sequence], keep=keep)


class Bare:
  """The same calls on a store alone."""

  def __init__(self, policy, capacity, eviction):
    self.store = make_store(
      store_planner(policy, SIZES, depths=CONFIG.numerics.max_length // CHUNK),
      SIZES,
      capacity_bytes=capacity,
      longest=CONFIG.numerics.max_length,
      eviction=eviction,
    )
    self.limits = PrefixCache(small_model(), capacity=1 << 20).limits

  def prefill(self, prompts):
    waiting, done = check_requests(self.limits, prompts), {}
    if self.store.chooser:
      move_if_due(self.store, self.store.chooser)
    for request in waiting:
      self.store.check_fits(request)
    try:
      while waiting:
        wave = next_wave(self.store, waiting)
        for running in self.store.open(wave.requests, wave.shared):
          done[running.request.index] = running
        for request in wave.requests:
          commit_all(self.store, done[request.index])
        waiting = wave.later
    except CapacityError:
      for running in done.values():
        self.store.drop(running)
      raise
    ordered = [done[index] for index in range(len(done))]
    found = [
      (r.match.overlap_tokens, r.resumed, r.captured, r.match.reason)
      for r in ordered
    ]
    return ordered, found

  def decode(self, running, token):
    self.store.advance([running])
    self.store.append(running, token)
    commit_all(self.store, running)
    return running

  def fork(self, running):
    return self.store.fork(running)[0]

  def release(self, running, keep=None):
    self.store.close(running, keep)


def script(side, stream, seed):
  """Makes the calls; yields what is seen after each."""
  for kind, prompts, answers in stream(np.random.default_rng(seed)):
    try:
      sequences, found = side.prefill(prompts)
    except CapacityError:
      yield "full", side.store.stats()
      continue
    yield found, side.store.stats()
    if kind == "fork":
      try:
        sequences.append(side.fork(sequences[0]))
        answers = [*answers, answers[0][:5]]
      except CapacityError:
        pass
    for i, answer in enumerate(answers):
      try:
        for token in answer:
          sequences[i] = side.decode(sequences[i], token)
      except CapacityError:
        yield "no page", side.store.stats()
    for i, sequence in enumerate(sequences):
      kept = len(prompts[0]) if kind == "again" and i == 0 else None
      side.release(sequence, kept)
      yield "released", side.store.stats()
    side.store.audit()


@pytest.mark.parametrize(("name", "eviction"), RULES)
def test_a_server_and_a_bare_store_do_the_same(name, eviction):
  policy = PlacementPolicy(name, PLACEMENTS[name], CHUNK, every=3)
  # With room for all every rule of eviction does the same: nothing.
  comfortable = [1 << 20] if eviction in ("lru", "index") else []
  capacities, evicted = [*comfortable, 400_000, 200_000], 0
  for seed, stream in enumerate(STREAMS):
    for capacity in capacities:
      server = Server(policy, capacity, eviction)
      bare = Bare(policy, capacity, eviction)
      served = list(script(server, stream, seed))
      assert served == list(script(bare, stream, seed))
      assert len(served) >= 10
      evicted += server.store.stats().evicted_states
  assert evicted > 0 or name == "no_cache"


def moving(random):
  """Long documents first, then prompts that share nothing: shares move."""
  texts = [ids(random, 180) for _ in range(3)]
  for i in range(170):
    if i < 20:
      prompt = texts[i % 3] + ids(random, random.integers(1, 20))
    else:
      prompt = ids(random, 20)
    yield "one", [prompt], [[]]


@pytest.mark.parametrize(
  ("name", "capacity"),
  [("last", 400_000), ("last", 1 << 20), ("adaptive", 400_000)],
)
def test_a_server_and_a_bare_store_make_the_same_moves(name, capacity):
  policy = PlacementPolicy(name, chunk=CHUNK)
  server = Server(policy, capacity, None)
  bare = Bare(policy, capacity, None)
  assert list(script(server, moving, 0)) == list(script(bare, moving, 0))
  moves = server.store.chooser.moves
  assert moves == bare.store.chooser.moves > 0
  assert server.store.chooser.moved_bytes == bare.store.chooser.moved_bytes
  assert server.store.index.budget == bare.store.index.budget


@pytest.mark.parametrize("name", ["last", "optimal", "conditional", "adaptive"])
def test_simulate_promises_what_is_served(name):
  """One request at a time, with answers: the report's sums are the server's."""
  policy = PlacementPolicy(name, PLACEMENTS[name], CHUNK, every=3)
  random, rows = np.random.default_rng(0), []
  texts = [ids(random, size) for size in (60, 90)]
  for i in range(24):
    prompt = texts[i % 2] + ids(random, random.integers(1, 20))
    rows.append((prompt, ids(random, random.integers(0, 9))))
  capacity, server = 400_000, Server(policy, 400_000, None)
  for prompt, answer in rows:
    (sequence,), _ = server.prefill([prompt])
    for token in answer:
      sequence = server.decode(sequence, token)
    server.release(sequence)
  trace = Trace(
    "answers",
    tuple(
      TraceRequest(np.array(p + a, np.int32), len(p) + len(a), answer=len(a))
      for p, a in rows
    ),
  )
  report = simulate(trace, policy, Capacity("bytes", capacity), sizes=SIZES)
  stats = server.store.stats()
  assert report.tokens_saved == stats.saved_tokens > 0
  assert report.reusable_tokens == stats.overlap_tokens
  assert report.tokens_total == stats.prompt_tokens
