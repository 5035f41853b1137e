"""K states in all, everything else free: which states are worth their slot?

The tree of all earlier requests is kept for ever, keys and values included;
only state checkpoints compete, for K slots. A request's path is its whole
lattice blocks; a trailing partial block is neither matched nor stored, and a
match may reach the end of the prompt, which a server's cannot.
"""

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from sparse_prefix_jax.cache.index import token_blocks
from sparse_prefix_jax.evaluation.capacity import check_eviction
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.placement import Features, Planner, Prompt
from sparse_prefix_jax.placement.cue_learner import CueLearner
from sparse_prefix_jax.placement.worth import Adaptive
from sparse_prefix_jax.workloads import Trace, TraceRequest


@dataclass(frozen=True)
class Path:
  """The way of one request through the tree.

  Attributes:
    nodes: One number per whole block; equal numbers are equal prefixes.
    seen: Depth of the deepest node that an earlier request passed.
    entry: Position in the stream of the last request that passed it; -1 where
      nothing was seen.
  """

  nodes: tuple[int, ...]
  seen: int
  entry: int


def block_keys(
  request: TraceRequest, trace: Trace, chunk: int
) -> Sequence[Hashable]:
  """Returns the keys of the whole lattice blocks of a request.

  Args:
    request: A request of the trace.
    trace: Tells what an id is: a token, or a block of `chunk` tokens.
    chunk: Tokens per block.
  """
  if trace.block == 1:
    return token_blocks(request.ids, chunk)[0]
  return request.ids.tolist()


def tree_paths(
  trace: Trace, chunk: int, *, progress: bool = False
) -> list[Path]:
  """Numbers the prefixes of a stream; no placement changes them.

  Args:
    trace: The stream.
    chunk: Tokens per lattice block.
    progress: Show a progress bar.

  Returns:
    One path per request.
  """
  numbers: dict[tuple[int, Hashable], int] = {}
  passed: list[int] = []
  paths = []
  requests = tqdm(trace.requests, "paths", unit="request", disable=not progress)
  for position, request in enumerate(requests):
    node, known, nodes = -1, len(numbers), []
    for key in block_keys(request, trace, chunk):
      node = numbers.setdefault((node, key), len(numbers))
      nodes.append(node)
    seen = sum(n < known for n in nodes)
    entry = passed[nodes[seen - 1]] if seen else -1
    paths.append(Path(tuple(nodes), seen, entry))
    passed += [position] * (len(numbers) - known)
    for node in nodes[:seen]:
      passed[node] = position
  return paths


def overlap_tokens(trace: Trace, path: Path, place: int, chunk: int) -> int:
  """Counts the leading tokens that a request shares with the one before it.

  Args:
    trace: The stream.
    path: Of the request; it names the last one that went as far.
    place: Of the request in the stream.
    chunk: Tokens per lattice block.

  Returns:
    Tokens, those of whole blocks where the trace holds hashes of blocks. They
    are all of the request's only where it ends with a block: what follows the
    last one is never restored.

  >>> from sparse_prefix_jax.workloads import token_trace
  >>> trace = token_trace("two", [np.arange(9), np.arange(7)], groups=[0, 0])
  >>> overlap_tokens(trace, tree_paths(trace, 4)[1], 1, 4)
  6
  """
  whole = path.seen * chunk
  if trace.block > 1 or not path.seen:
    return whole
  ours, theirs = trace.requests[place].ids, trace.requests[path.entry].ids
  size = min(ours.size, theirs.size)
  beyond = ours[whole:size] != theirs[whole:size]
  shared = whole + int(np.argmax([*beyond, True]))
  return max(whole, min(shared, ours.size - 1))


def told_depths(
  trace: Trace, paths: Sequence[Path], chunk: int
) -> Iterator[int]:
  """Says where the tokens of each request tell that it will be left.

  Args:
    trace: The stream.
    paths: What `tree_paths` gave for it.
    chunk: Tokens per lattice block.

  Yields:
    Depths in blocks, 0 for none, and where only hashes of blocks are known.
  """
  cues, known = CueLearner(chunk=chunk), []
  for place, path in enumerate(paths):
    if trace.block > 1:
      yield 0
      continue
    prompt = Prompt(trace.requests[place].ids)
    overlap = overlap_tokens(trace, path, place, chunk)
    known.append(overlap)
    yield cues.cue(prompt, overlap) // chunk
    if path.seen:
      left = Features(trace.requests[path.entry].length, known[path.entry])
      cues.observe(overlap, matched=left, prompt=prompt)


class _Slots:
  """At most K tree nodes that hold a state; the oldest leaves first."""

  def __init__(self, count: int) -> None:
    """Starts empty; `count` is K."""
    self.count = count
    self.held: OrderedDict[int, None] = OrderedDict()

  def match(self, nodes: tuple[int, ...]) -> int:
    """Depth of the deepest node that holds a state, 0 for none."""
    deepest = len(nodes)
    while deepest and nodes[deepest - 1] not in self.held:
      deepest -= 1
    return deepest

  def refresh(self, nodes: Sequence[int]) -> None:
    """Makes the states of these nodes the youngest, the last one most."""
    for node in nodes:
      if node in self.held:
        self.held.move_to_end(node)

  def add(self, nodes: Sequence[int]) -> None:
    """Stores states, shallow first; where there are too many, the deepest."""
    for node in nodes[-self.count :]:
      if len(self.held) == self.count:
        self.held.popitem(last=False)
      self.held[node] = None


class Wanted(NamedTuple):
  """What a placement says of one request.

  Attributes:
    depths: Where it wants states, in blocks, ascending.
    expected: Tokens that it expected to be lost when it placed the entry which
      this request matches; None where it knows no overlaps, or none matches.
  """

  depths: tuple[int, ...]
  expected: float | None = None


def wanted_depths(
  trace: Trace,
  planner: Planner,
  paths: Iterable[Path],
  *,
  warmup: int,
) -> Iterator[Wanted]:
  """Says where a placement wants states; it does not know what is held.

  Args:
    trace: The stream.
    planner: Where states go; it learns how deep the tree matches.
    paths: What `tree_paths` gave for this stream and the planner's chunk.
    warmup: How many leading requests only fill the cache.

  Yields:
    Depths and what they were expected to lose, request by request.
  """
  known: list[Features] = []
  expected: list[float | None] = []
  chunk = planner.policy.chunk
  for position, (request, path) in enumerate(zip(trace.requests, paths)):
    if position == warmup:
      planner.end_warmup()
    overlap = overlap_tokens(trace, path, position, chunk)
    matched = known[path.entry] if path.seen else None
    prompt = Prompt(request.ids) if trace.block == 1 else None
    features = planner.describe(request.length, overlap, matched, prompt)
    planner.observe(overlap, entry=features, matched=matched, prompt=prompt)
    known.append(features)
    positions = planner.positions(request.length, features)
    matches = expected[path.entry] if path.seen else None
    expected.append(planner.expected_lost(positions, features))
    yield Wanted(tuple(p // chunk for p in positions), matches)


def replay_states(
  trace: Trace,
  wanted: Iterable[Wanted],
  paths: Sequence[Path],
  *,
  chunk: int,
  slots: int,
  warmup: int,
  eviction: str = "lru",
  whole_path: bool = False,
  progress: bool = False,
) -> Tally:
  """Replays a stream with K state slots for one placement.

  Args:
    trace: The stream.
    wanted: What `wanted_depths` yields for it and a placement.
    paths: What `tree_paths` gave for this stream and chunk.
    chunk: Tokens per lattice block.
    slots: K.
    warmup: How many leading requests only fill the cache.
    eviction: "fifo", or "lru": a state that a request resumes from becomes
      the youngest.
    whole_path: With "lru", all states above it on the path become so too.
    progress: Show a progress bar.

  Returns:
    Counts of the measured requests.

  Raises:
    ValueError: If the eviction has another name.
  """
  check_eviction("states", eviction)
  tally, held = Tally(), _Slots(slots)
  requests = tqdm(
    trace.requests, "states", unit="request", disable=not progress
  )
  for position, (request, path, (depths, expected)) in enumerate(
    zip(requests, paths, wanted)
  ):
    resumed = held.match(path.nodes)
    if eviction == "lru" and resumed:
      first = 0 if whole_path else resumed - 1
      held.refresh(path.nodes[first:resumed])
    added = [k for k in depths if k > resumed]
    held.add([path.nodes[k - 1] for k in added])
    tally.peak = max(tally.peak, len(held.held))
    if position >= warmup:
      tally.add(
        _outcome(request, path, resumed, added, chunk, expected),
        states=len(added),
      )
  return tally


def _outcome(
  request: TraceRequest,
  path: Path,
  resumed: int,
  added: Iterable[int],
  chunk: int,
  expected: float | None = None,
) -> Outcome:
  """What became of a request, in tokens."""
  return Outcome(
    length=request.length,
    overlap=path.seen * chunk,
    restored=resumed * chunk,
    positions=tuple(depth * chunk for depth in added),
    expected=expected,
  )


class Placed(NamedTuple):
  """What `adaptive` did with one request.

  Attributes:
    resumed: Depth of the state that it resumed from, in blocks.
    depths: Where it added states that are held still, in blocks, ascending.
    expected: Tokens that it was expected to lose, before it came.
  """

  resumed: int
  depths: tuple[int, ...]
  expected: float


def place_adaptively(
  policy: Adaptive,
  paths: Sequence[Path],
  *,
  slots: int,
  told: Iterable[int] | None = None,
) -> Iterator[Placed]:
  """Serves requests with K state slots, of which `adaptive` makes the most.

  Args:
    policy: What is worth a slot; it learns from every request.
    paths: The ways of the requests, of `tree_paths`.
    slots: K.
    told: What `told_depths` yields for them; None for no such depths.

  Yields:
    What was done, request by request.

  >>> paths = [Path((0, 1), 0, -1), Path((0, 1), 2, 0)]
  >>> placed = list(place_adaptively(Adaptive(block=64), paths, slots=2))
  >>> [(one.resumed, one.depths) for one in placed]
  [(0, (1, 2)), (2, ())]
  """
  for path, depth in zip(paths, told or itertools.repeat(0)):
    expected = policy.expected_lost()
    visit = policy.observe(path.nodes)
    named = {depth} - {0} if depth <= len(path.nodes) else set()
    roomy = policy.held_count < slots
    offered = policy.candidates(visit, anchors=named, roomy=roomy)
    policy.hold(offered[-slots:])
    while policy.held_count > slots:
      policy.release(policy.choose())
    kept = filter(policy.is_held, offered)
    depths = tuple(map(policy.depth_of, kept))
    yield Placed(visit.resumed, depths, expected)


def replay_adaptive(
  trace: Trace,
  policy: Adaptive,
  paths: Sequence[Path],
  *,
  chunk: int,
  slots: int,
  warmup: int,
  progress: bool = False,
) -> Tally:
  """Replays a stream with K state slots for `adaptive`, which evicts as well.

  Args:
    trace: The stream.
    policy: What is worth a slot; it learns from every request.
    paths: What `tree_paths` gave for this stream and chunk.
    chunk: Tokens per lattice block.
    slots: K.
    warmup: How many leading requests only fill the cache.
    progress: Show a progress bar.

  Returns:
    Counts of the measured requests.
  """
  tally = Tally()
  requests = tqdm(
    trace.requests, "adaptive", unit="request", disable=not progress
  )
  told = told_depths(trace, paths, chunk)
  placed = place_adaptively(policy, paths, slots=slots, told=told)
  for position, (request, path, one) in enumerate(zip(requests, paths, placed)):
    tally.peak = max(tally.peak, policy.held_count)
    if position >= warmup:
      tally.add(
        _outcome(request, path, *one[:2], chunk, one.expected),
        states=len(one.depths),
      )
  return tally
