"""What the scheduler dispatches: nothing here waits for the device.

Ids go from one step to the next in an array of the device, one place per seat,
so that nobody has to read them in between.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import listed
from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.plan import Plan, build_plan, page_table
from sparse_prefix_jax.runtime.row_sampler import Sampled
from sparse_prefix_jax.runtime.run import (
  HeadRows,
  dispatch_groups,
  head_blocks,
  last_rows,
)
from sparse_prefix_jax.runtime.segment import Segment
from sparse_prefix_jax.serving.decode import step_input
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.sampler import Sampler, SampleRows


class Chosen(NamedTuple):
  """Ids of some requests, chosen on the device and not read yet.

  Attributes:
    lives: The requests, in the order of the first rows.
    sampled: What was chosen.
    logits: That it was chosen from; None where nobody keeps them.
  """

  lives: tuple[Life, ...]
  sampled: Sampled
  logits: jax.Array | None


class Dispatcher:
  """Prefill, decode and sampling of one cache, dispatched.

  Args:
    cache: Its programs and pools.
    sampler: Chooses ids.
    seats: How many requests may run at once.
  """

  def __init__(self, cache: PrefixCache, sampler: Sampler, seats: int) -> None:
    """Nobody sits anywhere yet."""
    self._cache, self._sampler, self._seats = cache, sampler, seats
    self._ids = jnp.zeros(seats, jnp.int32)

  def prefill(
    self, segments: Sequence[Segment], choosing: Sequence[Life | None]
  ) -> list[Chosen]:
    """Runs segments packed together.

    Args:
      segments: At least one.
      choosing: Per segment, the request that chooses an id after it, or None.

    Returns:
      What was chosen.
    """
    cache, budget = self._cache, self._cache.store.index.budget
    plan = build_plan(
      cache.config, segments, slots=budget.slots or 0, pages=budget.pages or 0
    )
    rows = last_rows(plan)[[life is not None for life in choosing]]
    lives = iter([life for life in choosing if life is not None])
    chosen = []
    for pools, blocks in dispatch_groups(cache.frozen, cache.pools, plan, rows):
      cache.pools = pools
      chosen += self._choose(blocks, lives)
    return chosen

  def decode(self, lives: Sequence[Life]) -> list[Chosen]:
    """Runs one token of up to `decode_rows` requests.

    Args:
      lives: Booked already; the id of a token may be on the device only.

    Returns:
      What was chosen, by those who do.
    """
    cache = self._cache
    running = [life.sequence for life in lives]
    size = cache.config.numerics.decode_rows
    known = np.full(size, -1, np.int32)
    known[: len(lives)] = [life.last_id for life in lives]
    tokens = _next_tokens(self._ids, self._seat(lives, size), known)
    step = step_input(cache.config, running, tokens)
    hidden, cache.pools = programs.decode_step(cache.frozen, cache.pools, step)
    choosing = [i for i, life in enumerate(lives) if life.chooses]
    rows = np.array(choosing, np.int32)
    blocks = head_blocks(cache.frozen, hidden, rows, size)
    return self._choose(blocks, iter([lives[i] for i in choosing]))

  def warm_up(self, samplings: Sequence[object]) -> Iterator[str]:
    """Compiles what steps run, by programs whose rows are all free.

    Args:
      samplings: Ways of sampling that are compiled; nobody sits anywhere.

    Yields:
      What is compiled next.

    Raises:
      ValueError: If one of them cannot be meant.
    """
    ways = listed(samplings)
    if ways is None:
      raise ValueError("samplings must be a list of ways of sampling.")
    for sampling in ways:
      self._sampler.check(sampling)
    cache, numerics = self._cache, self._cache.config.numerics
    one = np.zeros(1, np.int32)
    for rung in numerics.ladder:
      yield f"prefill of {rung} x {numerics.chunk} tokens"
      plan = _free_plan(cache, rung)
      for pools, blocks in dispatch_groups(
        cache.frozen, cache.pools, plan, one
      ):
        cache.pools = pools
        self._draw(blocks, ways)
    yield f"a step of {numerics.decode_rows} requests"
    size = numerics.decode_rows
    nobody, unknown = self._seat([], size), np.full(size, -1, np.int32)
    tokens = _next_tokens(self._ids, nobody, unknown)
    step = step_input(cache.config, [], tokens)
    hidden, cache.pools = programs.decode_step(cache.frozen, cache.pools, step)
    blocks = head_blocks(cache.frozen, hidden, one, size)
    self._draw(blocks, ways)
    jax.block_until_ready(self._ids)

  def _draw(
    self, blocks: Sequence[HeadRows], samplings: Sequence[object]
  ) -> None:
    """Draws ids in every way, for somebody in the first seat."""
    nothing = np.zeros(0, np.int32)
    for logits, _ in blocks:
      size = logits.shape[0]
      free, position = self._seat([], size), np.zeros(size, np.int32)
      seats = free.copy()
      seats[0] = 0
      for sampling in samplings:
        self._sampler.begin(0, sampling, np.zeros(1, np.int32), nothing)
        sampled = self._sampler.sample(logits, SampleRows(seats, position))
        self._ids = _keep_ids(self._ids, free, sampled.ids)

  def _choose(
    self, blocks: Sequence[HeadRows], lives: Iterator[Life]
  ) -> list[Chosen]:
    """Chooses an id for every row, and keeps it for the next step."""
    chosen = []
    for logits, count in blocks:
      size, here = logits.shape[0], tuple(next(lives) for _ in range(count))
      seats, position = self._seat(here, size), np.zeros(size, np.int32)
      position[:count] = [life.sequence.length for life in here]
      sampled = self._sampler.sample(logits, SampleRows(seats, position))
      self._ids = _keep_ids(self._ids, seats, sampled.ids)
      kept = logits if any(life.asked.keep_logits for life in here) else None
      chosen.append(Chosen(here, sampled, kept))
    return chosen

  def _seat(self, lives: Sequence[Life], size: int) -> np.ndarray:
    """Seats of some rows; free ones lie past the end. [size]"""
    seats = np.full(size, self._seats, np.int32)
    seats[: len(lives)] = [life.seat for life in lives]
    return seats


def _free_plan(cache: PrefixCache, chunks: int) -> Plan:
  """A plan that reads zeros and writes nothing."""
  config, budget = cache.config, cache.store.index.budget
  zeros = np.zeros(chunks, np.int32)
  return Plan(
    tokens=np.zeros((chunks, config.numerics.chunk), np.int32),
    read=zeros + ZERO,
    write=zeros + NONE,
    length=zeros,
    position=zeros,
    request=zeros,
    spill=np.full(1, NONE, np.int32),
    page_table=page_table(config, [[]]),
    slots=budget.slots or 0,
    pages=budget.pages or 0,
  )


@jax.jit
def _next_tokens(
  ids: Int32[Array, "seats"], seats: Int32[Array, "b"], known: Int32[Array, "b"]
) -> Int32[Array, "b"]:
  """What the host knows, and else what was chosen last in the seat."""
  return jnp.where(known >= 0, known, ids.at[seats].get(mode="clip"))


@jax.jit
def _keep_ids(
  ids: Int32[Array, "seats"],
  seats: Int32[Array, "b"],
  chosen: Int32[Array, "b"],
) -> Int32[Array, "seats"]:
  """Puts what was chosen into its seats; those past the end are nobody's."""
  return ids.at[seats].set(chosen, mode="drop")
