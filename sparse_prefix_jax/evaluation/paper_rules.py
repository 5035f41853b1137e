"""The paper's simulator: the cache holds the entries of the last N requests.

Which entry a request matches, and how far, does not depend on where states are
kept. So the look-ups of a stream are done once (`look_up`) and every placement
is replayed against them (`replay_decisions`).
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from sparse_prefix_jax.evaluation.capacity import check_eviction
from sparse_prefix_jax.evaluation.outcomes import Outcome
from sparse_prefix_jax.evaluation.report import Tally
from sparse_prefix_jax.placement import Features, Planner, Prompt
from sparse_prefix_jax.workloads import Trace, TraceRequest, common_prefix


@dataclass(frozen=True)
class Lookup:
  """What one request found, in the order of the stream.

  Attributes:
    overlap: Longest common prefix with a held entry of its group, in tokens;
      a trailing partial block counts for nothing.
    entry: Position in the stream of the request that left that entry, the
      earliest stored one among equals; -1 where nothing was shared.
    evicted: Position of the request whose entry left when this one's came;
      -1 for none.
  """

  overlap: int
  entry: int
  evicted: int


def _longest(
  request: TraceRequest, held: Sequence[int], requests: Sequence[TraceRequest]
) -> tuple[int, int]:
  """Finds the held entry that shares most with a request.

  Args:
    request: What is looked up.
    held: Positions of the entries to compare with, the earliest stored first.
    requests: The stream.

  Returns:
    Number of common ids, and the position of the first entry that has as many;
    0 and -1 where nothing is shared.
  """
  best, entry = 0, -1
  for position in held:
    common = common_prefix(requests[position].ids, request.ids)
    if common > best:
      best, entry = common, position
  return best, entry


def look_up(
  trace: Trace,
  sequences: int,
  *,
  eviction: str = "fifo",
  progress: bool = False,
) -> list[Lookup]:
  """Matches every request against the entries held when it comes.

  Args:
    trace: The stream.
    sequences: How many entries are held.
    eviction: "fifo", or "lru": an entry that is matched becomes the youngest.
    progress: Show a progress bar.

  Returns:
    One look-up per request.

  Raises:
    ValueError: If the eviction has another name.
  """
  check_eviction("sequences", eviction)
  # Entries that share anything agree in group and first id.
  held: dict[tuple[int, int], OrderedDict[int, None]] = {}
  ages: OrderedDict[int, None] = OrderedDict()
  keys = [
    (r.group, int(r.ids[0]) if len(r.ids) else -1) for r in trace.requests
  ]
  lookups = []
  requests = tqdm(
    trace.requests, "look-ups", unit="request", disable=not progress
  )
  for position, request in enumerate(requests):
    alike = held.setdefault(keys[position], OrderedDict())
    common, entry = _longest(request, tuple(alike), trace.requests)
    if entry >= 0 and eviction == "lru":
      ages.move_to_end(entry)
    ages[position], alike[position] = None, None
    evicted = -1
    if len(ages) > sequences:
      evicted = ages.popitem(last=False)[0]
      del held[keys[evicted]][evicted]
    lookups.append(Lookup(common * trace.block, entry, evicted))
  return lookups


@dataclass(frozen=True)
class Decision:
  """What the cache decided for one request.

  Attributes:
    length: Prompt tokens.
    overlap: Leading tokens that equal a held entry's, 0 without a cache.
    resumed: Position of the state that it resumes from, 0 for none.
    marks: Positions at which its entry keeps states.
    held: States held by all entries after it was stored.
    expected: Tokens that the matched entry's placement expected to be lost;
      None where it knows no overlaps, or nothing was matched.
  """

  length: int
  overlap: int
  resumed: int
  marks: tuple[int, ...]
  held: int
  expected: float | None = None


def replay_decisions(
  trace: Trace,
  planner: Planner,
  lookups: Sequence[Lookup],
  warmup: int,
  *,
  progress: bool = False,
) -> Iterator[Decision]:
  """Replays a stream under the paper's rules, request by request.

  Args:
    trace: The stream.
    planner: Where states go; it still warms up if there is a warm-up.
    lookups: What `look_up` gave for this stream.
    warmup: How many leading requests only fill the cache.
    progress: Show a progress bar.

  Yields:
    One decision per request, those of the warm-up included.
  """
  stored: dict[int, tuple[int, ...]] = {}
  known: dict[int, Features] = {}
  expected: dict[int, float | None] = {}
  held, uses_cache = 0, planner.policy.name != "no_cache"
  requests = tqdm(
    trace.requests, planner.policy.name, unit="request", disable=not progress
  )
  for position, (request, found) in enumerate(zip(requests, lookups)):
    if position == warmup:
      planner.end_warmup()
    overlap = found.overlap if uses_cache else 0
    matched = known.get(found.entry) if uses_cache else None
    prompt = Prompt(request.ids) if trace.block == 1 else None
    features = planner.describe(request.length, overlap, matched, prompt)
    planner.observe(overlap, entry=features, matched=matched, prompt=prompt)
    below = [p for p in stored.get(found.entry, ()) if p <= overlap]
    marks = planner.marks(request.length, features)
    stored[position], known[position] = marks, features
    matches = (
      expected.get(found.entry) if overlap >= planner.policy.chunk else None
    )
    expected[position] = planner.expected_lost(marks, features)
    known.pop(found.evicted, None)
    expected.pop(found.evicted, None)
    held += len(marks) - len(stored.pop(found.evicted, ()))
    resumed = max(below, default=0)
    yield Decision(request.length, overlap, resumed, marks, held, matches)


def _outcome(decision: Decision) -> Outcome:
  """What became of the request of a decision."""
  return Outcome(
    decision.length,
    decision.overlap,
    decision.resumed,
    decision.marks,
    decision.expected,
  )


def tally_decisions(decisions: Iterable[Decision], warmup: int) -> Tally:
  """Counts what was decided for the measured requests.

  Args:
    decisions: What `replay_decisions` yields.
    warmup: How many leading requests only fill the cache.

  Returns:
    The counts; the peak of held states includes the warm-up.
  """
  tally = Tally()
  for position, decision in enumerate(decisions):
    tally.peak = max(tally.peak, decision.held)
    if position >= warmup:
      tally.add(_outcome(decision), states=len(decision.marks))
  return tally
