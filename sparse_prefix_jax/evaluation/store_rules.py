"""A budget in bytes, as in serving: the prefix store itself, without a model.

The replay makes the calls of a server that serves one request at a time: open,
commit, append the answer where the stream tells it, close.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from sparse_prefix_jax.cache.index import Budget, CapacityError
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.cache.shares import split
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.placement import Planner
from sparse_prefix_jax.workloads import Request as Asked
from sparse_prefix_jax.workloads import Trace


@dataclass(frozen=True)
class Sizes:
  """Bytes of what a cache holds, for one model.

  Attributes:
    state_bytes: One state checkpoint, all recurrent layers together.
    page_bytes: Keys and values of one lattice block, all attention layers
      together.

  Raises:
    ValueError: If a size is negative, or a state has no bytes.
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


def make_store(
  planner: Planner,
  sizes: Sizes,
  *,
  capacity_bytes: int,
  longest: int,
  eviction: str = "lru",
  state_share: float | None = 0.5,
) -> PrefixStore:
  """The store of a server with these sizes.

  Args:
    planner: Where states go; its chunk is the lattice.
    sizes: Bytes of a state and of a page.
    capacity_bytes: What may be held at any time, running requests included.
    longest: Tokens of the longest sequence.
    eviction: Name of an eviction rule.
    state_share: Share of the capacity for states; None leaves it unsplit, as no
      server of ours can.

  >>> from sparse_prefix_jax.placement import PlacementPolicy
  >>> planner = Planner(PlacementPolicy("last"), depths=8)
  >>> sizes = Sizes(state_bytes=100, page_bytes=10)
  >>> store = make_store(planner, sizes, capacity_bytes=999, longest=64)
  >>> store.index.budget.slots
  4
  """
  chunk = planner.policy.chunk
  slots = pages = None
  if state_share is not None:
    slots, pages = split(
      capacity_bytes,
      slot_bytes=sizes.state_bytes,
      page_bytes=sizes.page_bytes,
      share=state_share,
      longest=-(-longest // chunk),
    )
  return PrefixStore(
    Budget(capacity_bytes, sizes.state_bytes, sizes.page_bytes, slots, pages),
    planner,
    chunk=chunk,
    eviction=eviction,
    stores=planner.policy.name != "no_cache",
  )


def store_request(request: Asked, trace: Trace, chunk: int) -> Request:
  """A request of a stream as the store takes it: its prompt, without answer.

  A trace of hashed blocks does not tell the ids of a trailing partial block.

  Args:
    request: Of the trace.
    trace: Tells what an id is: a token, or a block of `chunk` tokens.
    chunk: Tokens of a lattice block.
  """
  if trace.block == 1:
    return Request.of_tokens(request.prompt, chunk)
  return Request(request.length, tuple(request.ids.tolist()))


def serve(
  store: PrefixStore, request: Request, answer: Sequence[int] = ()
) -> Running:
  """The calls of a server for one request at a time, without a model.

  Args:
    store: Changed as a server's would be.
    request: The prompt.
    answer: Ids that were decoded after it.

  Returns:
    The sequence, closed.

  Raises:
    CapacityError: If the prompt or its answer does not fit an empty store.
  """
  (running,) = store.open([request])
  try:
    commit_all(store, running)
    for token in answer:
      store.advance([running])
      store.append(running, token)
      commit_all(store, running)
  except CapacityError:
    store.close(running)
    raise
  store.close(running)
  return running


def commit_all(store: PrefixStore, running: Running) -> None:
  """Counts as computed whatever is left to compute of a sequence."""
  segment = store.next_segment(running)
  if segment is not None:
    store.commit(running, segment)


def replay_store(
  trace: Trace,
  store: PrefixStore,
  *,
  warmup: int,
  progress: bool = False,
) -> Tally:
  """Replays a stream, one request at a time.

  A request that would not fit an empty store is refused by a server: it counts
  as computed, and nothing is learned from it.

  Args:
    trace: The stream.
    store: Of `make_store`.
    warmup: How many leading requests only fill the store.
    progress: Show a progress bar.

  Returns:
    Counts of the measured requests.
  """
  tally, chunk = Tally(bytes_peak=0), store.chunk
  requests = tqdm(
    trace.requests,
    store.planner.policy.name,
    unit="request",
    disable=not progress,
  )
  for position, asked in enumerate(requests):
    if position == warmup:
      store.planner.end_warmup()
    answer = asked.ids[len(asked.prompt) :].tolist()
    request = store_request(asked, trace, chunk)
    try:
      served = serve(store, request, answer)
    except CapacityError:
      served = None
    held = store.index
    tally.peak = max(tally.peak, held.held_slots)
    tally.bytes_peak = max(tally.bytes_peak or 0, held.held_bytes)
    if position >= warmup:
      tally.add(
        length=request.length,
        saved=served.resumed if served else 0,
        overlap=served.match.overlap_tokens if served else 0,
        states=len(served.entry.states) if served and served.entry else 0,
      )
  return tally
