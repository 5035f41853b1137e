"""A budget in bytes, as in serving: the prefix store itself, without a model.

The replay makes the calls of a server that serves one request at a time: open,
commit, append the answer where the stream tells it, close.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from sparse_prefix_jax.cache.divided_capacity import (
  REMEMBERED,
  DividedCapacity,
  host_memory,
)
from sparse_prefix_jax.cache.index import (
  Budget,
  CapacityError,
  Eviction,
  eviction_for,
)
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.evaluation.model_sizes import ModelSizes
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.placement import PlacementPolicy, Planner
from sparse_prefix_jax.workloads import Trace, TraceRequest


def store_planner(
  policy: PlacementPolicy,
  sizes: ModelSizes,
  *,
  depths: int,
  warming_up: bool = False,
) -> Planner:
  """Returns the planner of a server, which computes plans when needed.

  Args:
    policy: What to plan by.
    sizes: Sizes of the model; only its cost of prefill is used.
    depths: Number of depth bins of a chunk.
    warming_up: Whether leading requests only fill the cache.

  >>> sizes = ModelSizes(state_bytes=100, page_bytes=10)
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
  sizes: ModelSizes,
  *,
  capacity_bytes: int,
  longest: int,
  eviction: Eviction | None = None,
  state_share: float | str | None = None,
) -> PrefixStore:
  """Returns the store of a server with these sizes.

  Args:
    planner: Where states go; its chunk is the lattice.
    sizes: Bytes of a state and of a page.
    capacity_bytes: What may be held at any time, running requests included.
    longest: Tokens of the longest sequence, where the model takes none longer.
    eviction: Name of an eviction rule, or what makes one; None leaves it to
      the placement.
    state_share: Share of the capacity for states; None follows the requests,
      as `PrefixCache` does; "undivided" is what no server of ours can do.

  Returns:
    An empty store.

  Raises:
    ValueError: If the share is anything else, or the rule is not one of the
      placement.

  >>> from sparse_prefix_jax.placement import PlacementPolicy
  >>> planner = Planner(PlacementPolicy("last"), depths=8)
  >>> sizes = ModelSizes(state_bytes=100, page_bytes=10)
  >>> store = make_store(planner, sizes, capacity_bytes=999, longest=64)
  >>> store.index.budget.slots
  3
  """
  chunk = planner.policy.chunk
  divided = DividedCapacity(
    capacity_bytes,
    sizes.state_bytes,
    sizes.page_bytes,
    longest=-(-max(longest, sizes.max_length) // chunk),
    probed=sizes.probed,
  )
  rule = eviction_for(planner.policy.name, eviction)
  first = _first_share(state_share, divided)
  slots, pages = (None, None) if first is None else divided.split(first)
  store = PrefixStore(
    Budget(
      capacity_bytes,
      sizes.state_bytes,
      sizes.page_bytes,
      slots,
      pages,
      **host_memory(REMEMBERED, weighs=planner.worth is not None),
    ),
    planner,
    chunk=chunk,
    eviction=rule,
    stores=planner.policy.name != "no_cache",
  )
  if state_share is None and len(divided.usable) > 1:
    store.chooser = ShareChooser(store, divided, rule)
  return store


def _first_share(
  share: float | str | None, divided: DividedCapacity
) -> float | None:
  """The share to begin with; ValueError for what says nothing of one."""
  if share is None:
    return divided.first
  if share == "undivided":
    return None
  if isinstance(share, float) and 0 < share < 1:
    return share
  raise ValueError(
    "state_share must be a number in (0, 1), 'undivided' or None, got"
    f" {share!r}"
  )


def share_of(store: PrefixStore) -> float | None:
  """Returns the share of its capacity that a store has for states now.

  Args:
    store: What `make_store` made.

  Returns:
    The share that was chosen last, or what the slots of a fixed share take;
    None where the capacity is undivided.

  >>> policy = PlacementPolicy("last", chunk=4)
  >>> store = make_store(
  ...   Planner(policy, depths=8),
  ...   ModelSizes(state_bytes=100, page_bytes=10),
  ...   capacity_bytes=1000,
  ...   longest=32,
  ...   state_share=0.25,
  ... )
  >>> share_of(store)
  0.2
  """
  if isinstance(store.chooser, ShareChooser):
    return store.chooser.share
  budget = store.index.budget
  if budget.slots is None:
    return None
  return budget.slots * budget.slot_bytes / budget.capacity_bytes


def store_request(request: TraceRequest, trace: Trace, chunk: int) -> Request:
  """Returns a request of a stream as a store takes it: without its answer.

  A trace of hashed blocks does not tell the ids of a trailing partial block.

  Args:
    request: A request of the trace.
    trace: Tells what an id is: a token, or a block of `chunk` tokens.
    chunk: Tokens of a lattice block.
  """
  if trace.block == 1:
    return Request.of_tokens(request.prompt, chunk)
  return Request(request.length, tuple(request.ids.tolist()))


def serve(
  store: PrefixStore, request: Request, answer: Sequence[int] = ()
) -> Running:
  """Makes the calls of a server for one request at a time, without a model.

  Args:
    store: Changed as a server's would be.
    request: The prompt.
    answer: Ids that were decoded after it.

  Returns:
    The sequence, closed.

  Raises:
    CapacityError: If the prompt or its answer does not fit an empty store.
  """
  running = run_prompt(store, request)
  try:
    for token in answer:
      run_token(store, running, token)
  finally:
    store.close(running)
  return running


def run_prompt(store: PrefixStore, request: Request) -> Running:
  """Prefills a prompt, without a model.

  Args:
    store: Changed as a server's would be.
    request: The prompt.

  Returns:
    The sequence, to be closed.

  Raises:
    CapacityError: If the prompt does not fit an empty store.
  """
  if isinstance(store.chooser, ShareChooser):
    move_if_due(store, store.chooser)
  (running,) = store.open([request])
  commit_all(store, running)
  return running


def run_token(store: PrefixStore, running: Running, token: int) -> None:
  """Decodes one token, without a model.

  Args:
    store: Changed as a server's would be.
    running: The sequence that gets longer.
    token: The id that was decoded.

  Raises:
    CapacityError: If a page is needed and all are in use.
  """
  store.advance([running])
  store.append(running, token)
  commit_all(store, running)


def move_if_due(store: PrefixStore, chooser: ShareChooser) -> None:
  """Gives states another share, if one is due, and counts what it would copy.

  A server copies what is renumbered, and then every pool, layer by layer; it
  probes its programs in free slots and pages before and after.

  Args:
    store: Its limits change.
    chooser: The one of the store.
  """
  if chooser.due == chooser.share:
    return
  slots, pages = chooser.divided.split(chooser.due)
  spare = chooser.divided.spare
  try:
    with store.spare(*spare):
      pass
    moved = store.begin_resize(slots, pages, spare=spare)
  except CapacityError:
    return  # Running sequences hold too much: at the next request, perhaps.
  store.renumber(moved)
  store.end_resize(slots, pages)
  with store.spare(*spare):
    pass
  renumbered = len(moved.slots), len(moved.pages)
  budget = store.index.budget
  copied = budget.bytes_of(*renumbered) + budget.bytes_of(slots, pages)
  chooser.moved(chooser.due, copied)


def commit_all(store: PrefixStore, running: Running) -> None:
  """Counts as computed whatever is left to compute of a sequence."""
  segment = store.next_segment(running)
  if segment is not None:
    store.catch_up()
    store.commit(running, segment)


class _Since(NamedTuple):
  """What a store had counted when measuring began."""

  evicted: int
  moves: int
  moved_bytes: int

  @classmethod
  def now(cls, store: PrefixStore) -> "_Since":
    """What it has counted so far."""
    chooser, evicted = store.chooser, store.stats().evicted_states
    if isinstance(chooser, ShareChooser):
      return cls(evicted, chooser.moves, chooser.moved_bytes)
    return cls(evicted, 0, 0)


def replay_store(
  trace: Trace,
  store: PrefixStore,
  *,
  warmup: int,
  progress: bool = False,
) -> Tally:
  """Replays a stream, one request at a time.

  A request that would not fit an empty store is refused by a server: it counts
  as computed, and nothing is learned from it. An answer that does not fit is
  cut short, and its prompt counts like any other.

  Args:
    trace: The stream.
    store: What `make_store` made.
    warmup: How many leading requests only fill the store.
    progress: Show a progress bar.

  Returns:
    Counts of the measured requests.
  """
  tally, since = Tally(bytes_peak=0, refused_requests=0), _Since.now(store)
  requests = tqdm(
    trace.requests,
    store.planner.policy.name,
    unit="request",
    disable=not progress,
  )
  for position, asked in enumerate(requests):
    if position == warmup:
      store.planner.end_warmup()
      since = _Since.now(store)
    served = _replay_request(store, asked, trace, tally)
    tally.refused += [position] * (served is None)
    if position >= warmup:
      _count(tally, asked, served)
  end = _Since.now(store)
  tally.evicted_states = end.evicted - since.evicted
  tally.moves = end.moves - since.moves
  tally.moved_bytes = end.moved_bytes - since.moved_bytes
  tally.state_share = share_of(store)
  return tally


def _replay_request(
  store: PrefixStore, asked: TraceRequest, trace: Trace, tally: Tally
) -> Running | None:
  """Serves one request and notes the peaks; None where it is refused."""
  held = store.index
  try:
    running = run_prompt(store, store_request(asked, trace, store.chunk))
  except CapacityError:
    return None
  with contextlib.suppress(CapacityError):
    for token in asked.ids[len(asked.prompt) :].tolist():
      run_token(store, running, token)
  tally.bytes_peak = max(tally.bytes_peak or 0, held.held_bytes)
  store.close(running)
  tally.peak = max(tally.peak, held.held_slots)
  return running


def _count(tally: Tally, asked: TraceRequest, served: Running | None) -> None:
  """Adds a measured request; None where it was refused."""
  if served is None:
    tally.refused_requests = (tally.refused_requests or 0) + 1
    tally.add(Outcome(asked.prompt_length, 0, 0), states=0)
    return
  match = served.match
  outcome = Outcome(
    length=asked.prompt_length,
    overlap=match.overlap_tokens,
    restored=served.resumed,
    positions=served.captured,
    expected=served.expected_lost,
    reason=str(match.reason),
  )
  tally.add(outcome, states=len(served.entry.states) if served.entry else 0)
