"""A byte budget for states and for keys and values, as in serving.

The replay drives the same `PrefixIndex` as the prefix cache does, with numbers
of slots and pages instead of arrays: match, pin, reserve, insert. A request
resumes at floor((length - 1) / c) * c at most (DESIGN section 1.7).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  Match,
  PrefixIndex,
  token_blocks,
)
from sparse_prefix_jax.evaluation.anchor_rules import block_keys
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.placement import Features, Planner
from sparse_prefix_jax.workloads import Request, Trace


@dataclass(frozen=True)
class Sizes:
  """Bytes of what a cache holds, for one model.

  Attributes:
    state_bytes: one state checkpoint, all recurrent layers together.
    page_bytes: keys and values of one lattice block, all attention layers
      together.

  Raises:
    ValueError: a negative size, or a state of no bytes.
  """

  state_bytes: int
  page_bytes: int

  def __post_init__(self) -> None:
    """Checks both sizes."""
    if self.state_bytes < 1 or self.page_bytes < 0:
      raise ValueError(
        "state_bytes must be positive and page_bytes not negative, got"
        f" {self.state_bytes} and {self.page_bytes}"
      )


def _store(
  index: PrefixIndex,
  blocks: Sequence[Hashable],
  tail: bytes,
  match: Match,
  wanted: Sequence[int],
  features: Features,
) -> int:
  """Stores a request's pages and the wanted states.

  What the request resumes from is pinned while room is made. Blocks past the
  resumed position are computed again into pages of their own, as in serving,
  also where the tree has them; the tree then keeps its own and frees these.
  What does not fit even into an empty cache is served and not stored.

  Args:
    index: the cache.
    blocks: keys of the whole blocks of the request.
    tail: key of its remaining tokens.
    match: what the index found of it.
    wanted: depths in blocks at which to keep states.
    features: what the planner knows of it, kept with the entry.

  Returns:
    How many states the entry keeps alive: those it stored, those of its own
    that an earlier request left, and those on the path that it wished for and
    that the tree still held. A wish above the resumed position that no one
    holds is not among them; its state was never computed.
  """
  resumed = match.resume_blocks
  fresh = [depth for depth in wanted if depth > resumed]
  pin = index.pin(blocks, resumed)
  try:
    lease = index.reserve(len(fresh), len(blocks) - resumed)
  except CapacityError:
    index.unpin(pin)
    return 0
  inserted = index.insert(
    blocks,
    tail,
    (*match.pages, *lease.pages),
    dict(zip(fresh, lease.slots, strict=True)),
    claim=[depth for depth in wanted if depth <= resumed],
  )
  index.unpin(pin)
  inserted.entry.features = features
  return len(inserted.entry.claims)


def _keys(
  request: Request, trace: Trace, chunk: int
) -> tuple[Sequence[Hashable], bytes]:
  """Keys of the whole blocks of a request, and its tail.

  A trace of hashed blocks does not tell the ids of a trailing partial block.
  """
  if trace.block == 1:
    return token_blocks(request.ids, chunk)
  return block_keys(request, trace, chunk), b""


def replay_bytes(
  trace: Trace,
  planner: Planner,
  sizes: Sizes,
  *,
  capacity_bytes: int,
  warmup: int,
  eviction: str = "lru",
  progress: bool = False,
) -> Tally:
  """Replays a stream under one byte budget for one placement.

  Args:
    trace: the stream.
    planner: where states go; learns the overlaps.
    sizes: bytes of a state and of a page.
    capacity_bytes: what may be held at any time, reservations included.
    warmup: how many leading requests only fill the cache.
    eviction: "fifo" or "lru", by entry.
    progress: show a progress bar.

  Returns:
    Counts of the measured requests.
  """
  chunk, tally = planner.policy.chunk, Tally(bytes_peak=0)
  budget = Budget(capacity_bytes, sizes.state_bytes, sizes.page_bytes)
  index = PrefixIndex(budget, eviction, block_size=chunk)
  requests = tqdm(
    trace.requests, planner.policy.name, unit="request", disable=not progress
  )
  for position, request in enumerate(requests):
    if position == warmup:
      planner.end_warmup()
    blocks, tail = _keys(request, trace, chunk)
    limit = (request.length - 1) // chunk
    match = index.match(blocks, tail, limit=limit)
    overlap, matched = match.overlap_tokens, match.features
    features = planner.describe(request.length, overlap, matched)
    planner.observe(overlap, entry=features, matched=matched)
    wanted = [p // chunk for p in planner.positions(request.length, features)]
    states = _store(index, blocks, tail, match, wanted, features)
    tally.peak = max(tally.peak, index.held_slots)
    tally.bytes_peak = max(tally.bytes_peak or 0, index.held_bytes)
    if position >= warmup:
      tally.add(
        length=request.length,
        saved=match.resume_blocks * chunk,
        overlap=overlap,
        states=states,
      )
  return tally
