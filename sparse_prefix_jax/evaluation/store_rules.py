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
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.shares import Shares
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.models.cost import PrefillCost
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Request as Asked
from sparse_prefix_jax.workloads import Trace


@dataclass(frozen=True)
class Sizes:
  """Bytes of what a cache holds, for one model.

  Attributes:
    state_bytes: One state checkpoint, all recurrent layers together.
    page_bytes: Keys and values of one lattice block, all attention layers
      together.
    cost: What prefill costs, which learned placements spare; None counts
      tokens.

  Raises:
    ValueError: If a size is negative, or a state has no bytes.
  """

  state_bytes: int
  page_bytes: int
  cost: PrefillCost | None = None

  def __post_init__(self) -> None:
    """Checks both sizes."""
    if self.state_bytes < 1 or self.page_bytes < 0:
      raise ValueError(
        "state_bytes must be positive and page_bytes not negative, got"
        f" {self.state_bytes} and {self.page_bytes}"
      )


def store_planner(
  policy: PlacementPolicy,
  sizes: Sizes,
  *,
  depths: int,
  warming_up: bool = False,
) -> Planner:
  """The planner of a server with these sizes; it computes plans when needed.

  Args:
    policy: What to plan by.
    sizes: Of the model; its cost of prefill.
    depths: Number of depth bins of a chunk.
    warming_up: Whether leading requests only fill the cache.

  >>> sizes = Sizes(state_bytes=100, page_bytes=10)
  >>> planner = store_planner(PlacementPolicy("last"), sizes, depths=8)
  >>> planner.positions(128)
  (64,)
  """
  cost = sizes.cost and sizes.cost.cumulative(depths, policy.chunk)
  return Planner(
    policy,
    depths=depths,
    cost=cost,
    warming_up=warming_up,
    serving=True,
    background=False,
  )


def make_store(
  planner: Planner,
  sizes: Sizes,
  *,
  capacity_bytes: int,
  longest: int,
  eviction: str = "lru",
  state_share: float | str | None = "chosen",
) -> PrefixStore:
  """The store of a server with these sizes.

  Args:
    planner: Where states go; its chunk is the lattice.
    sizes: Bytes of a state and of a page.
    capacity_bytes: What may be held at any time, running requests included.
    longest: Tokens of the longest sequence.
    eviction: Name of an eviction rule.
    state_share: Share of the capacity for states; "chosen" follows the
      requests, as a server does; None leaves the capacity undivided, as no
      server of ours can.

  >>> from sparse_prefix_jax.placement import PlacementPolicy
  >>> planner = Planner(PlacementPolicy("last"), depths=8)
  >>> sizes = Sizes(state_bytes=100, page_bytes=10)
  >>> store = make_store(planner, sizes, capacity_bytes=999, longest=64)
  >>> store.index.budget.slots
  3
  """
  chunk = planner.policy.chunk
  sizes_of = Shares(
    capacity_bytes, sizes.state_bytes, sizes.page_bytes, -(-longest // chunk)
  )
  first = sizes_of.first if state_share == "chosen" else state_share
  slots, pages = (None, None) if first is None else sizes_of.split(first)
  store = PrefixStore(
    Budget(capacity_bytes, sizes.state_bytes, sizes.page_bytes, slots, pages),
    planner,
    chunk=chunk,
    eviction=eviction,
    stores=planner.policy.name != "no_cache",
  )
  if state_share == "chosen" and len(sizes_of.usable) > 1:
    store.chooser = ShareChooser(store, sizes_of, eviction)
  return store


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
  if isinstance(store.chooser, ShareChooser):
    move_if_due(store, store.chooser)
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


def move_if_due(store: PrefixStore, chooser: ShareChooser) -> None:
  """Gives states another share, if one is due, and counts what it would copy.

  A server copies what is renumbered, and then every pool, layer by layer.

  Args:
    store: Its limits change.
    chooser: Of the store.
  """
  if chooser.due == chooser.share:
    return
  slots, pages = chooser.sizes.split(chooser.due)
  try:
    moved = store.begin_resize(slots, pages)
  except CapacityError:
    return  # Running sequences hold too much: at the next request, perhaps.
  store.renumber(moved)
  store.end_resize(slots, pages)
  renumbered = len(moved.slots), len(moved.pages)
  budget = store.index.budget
  copied = budget.bytes_of(*renumbered) + budget.bytes_of(slots, pages)
  chooser.moved(chooser.due, copied)


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
