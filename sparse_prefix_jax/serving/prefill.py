"""Prefill: match -> plan -> restore -> suffix scan -> insert.

The page to read first: `prefill` is the whole idea.
"""

import dataclasses
from collections.abc import Sequence as Several
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.index import CapacityError, Match, Pin, Reason
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import Request, check_requests
from sparse_prefix_jax.cache.running import Running, Sequence
from sparse_prefix_jax.kernels.chunks import ZERO
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime.plan import Segment, build_plan
from sparse_prefix_jax.runtime.programs import FrozenModel
from sparse_prefix_jax.runtime.run import all_rows, last_rows, run_plan


class Report(NamedTuple):
  """What the cache did for one request; positions and lengths in tokens.

  Attributes:
    length: Of the prompt.
    overlap: Leading tokens that were stored.
    resumed: Position of the state that it resumed from.
    captured: Positions at which states were captured.
    reason: Why it did not resume any deeper.
    wave: Which wave of the batch it ran in.
  """

  length: int
  overlap: int
  resumed: int
  captured: tuple[int, ...]
  reason: Reason
  wave: int

  @property
  def recomputed(self) -> int:
    """Tokens computed: the suffix."""
    return self.length - self.resumed


class PrefillOutput(NamedTuple):
  """Result of `prefill`, in the order of the prompts.

  Attributes:
    logits: Float32 per request: [vocab] of the last token, or with
      `all_logits` [recomputed vocab] of every token from `resumed` on.
    sequences: Handles for `decode`, `cache.fork` and `cache.release`.
    reports: What the cache did for each.
  """

  logits: tuple[np.ndarray, ...]
  sequences: tuple[Sequence, ...]
  reports: tuple[Report, ...]


@dataclasses.dataclass
class _Admitted:
  """A request of a wave: what it resumes from and what it will write."""

  request: Request
  match: Match
  pin: Pin
  shared: set[int] = dataclasses.field(default_factory=set)
  number: int = -1
  captures: dict[int, int] = dataclasses.field(default_factory=dict)
  inserted: bool = False


def prefill(
  model: HybridDecoder,
  cache: PrefixCache,
  prompts: Several[at.Tokens],
  *,
  anchors: Several[Several[int]] | None = None,
  capture: Several[Several[int]] | None = None,
  all_logits: bool = False,
  salt: bytes = b"",
) -> PrefillOutput:
  """Computes prompts, each from the deepest state that fits it.

  The logits, and every carry, key and value that is kept, have the bits that a
  cold prefill alone would give. A request whose prefix another one of the
  batch is about to compute waits for the next wave and resumes from it.

  Args:
    model: The model of the cache.
    cache: Matched, extended and, if need be, evicted from.
    prompts: Token ids per request, at least one each.
    anchors: Per request, positions worth a state besides the placement's: the
      end of a system prompt or a document; floored to the lattice.
    capture: Per request, the positions to capture: lattice points up to its
      length; instead of placement and anchors. What another request of the
      batch waits for is captured besides.
    all_logits: Logits of every computed token instead of the last one.
    salt: Requests with different salts share nothing.

  Returns:
    Logits, running sequences and a report per request. Release the sequences
    when they are done: they hold two states and their last pages.

  Raises:
    ValueError: If an argument is out of range; nothing has changed then.
    CapacityError: If the running sequences do not fit; those of this call are
      released then.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity=4 << 20)
    >>> document = list(range(200))
    >>> for question in ([7], [8, 9]):
    ...   out = prefill(model, cache, [document + question])
    ...   cache.release(out.sequences)
    >>> out.reports[0].resumed, out.reports[0].recomputed
    (192, 10)
  """
  frozen = cache.check_model(model)
  waiting = check_requests(cache, prompts, anchors, capture, salt)
  results: dict[int, tuple[np.ndarray, _Admitted, Report]] = {}
  wave_number = 0
  while waiting:
    wave, waiting = _next_wave(cache, waiting)
    done = [admitted for _, admitted, _ in results.values()]
    _admit(cache, wave, done)
    try:
      segments = [_segment(cache, admitted) for admitted in wave]
      logits = _scan(frozen, cache, segments, all_logits)
      for admitted in wave:
        _insert(cache, admitted)
    except BaseException:
      _abandon(cache, [*done, *wave])
      cache.recover()
      raise
    for admitted, rows in zip(wave, logits, strict=True):
      report = _report(cache, admitted, wave_number)
      results[admitted.request.index] = (rows, admitted, report)
    wave_number += 1
  ordered = [results[index] for index in range(len(results))]
  return PrefillOutput(
    logits=tuple(rows for rows, _, _ in ordered),
    sequences=tuple(cache.handle(done.number) for _, done, _ in ordered),
    reports=tuple(report for _, _, report in ordered),
  )


def _next_wave(
  cache: PrefixCache, waiting: list[Request]
) -> tuple[list[_Admitted], list[Request]]:
  """Matches; who shares more with one that runs now than is stored, waits.

  What is matched is pinned at once: reserving for one request must not evict
  what another is about to resume from.
  """
  chunk = cache.config.chunk
  wave: list[_Admitted] = []
  later: list[Request] = []
  for request in waiting:
    match = cache.match(request.tokens, salt=request.salt)
    overlaps = [
      (request.lattice_overlap(other.request, chunk), other)
      for other in wave
      if cache.stores
    ]
    useful = [
      (shared, other)
      for shared, other in overlaps
      if shared > max(match.resume_blocks, other.match.resume_blocks)
    ]
    if useful:
      shared, other = max(useful, key=lambda pair: pair[0])
      other.shared.add(shared * chunk)
      later.append(request)
    else:
      pin = cache.pin(request.tokens, match, salt=request.salt)
      wave.append(_Admitted(request, match, pin))
  return wave, later


def _admit(
  cache: PrefixCache, wave: list[_Admitted], done: list[_Admitted]
) -> None:
  """Reserves for a whole wave, or releases the call's sequences.

  First what each must have, then slots for the states that it would capture.
  What requests resume from is pinned, and pins may be all that is in the way:
  where there is no room, the wave gives its matches up and starts cold.
  """
  try:
    _admit_all(cache, wave)
  except CapacityError:
    for admitted in wave:
      _start_cold(cache, admitted)
    try:
      _admit_all(cache, wave)
    except CapacityError:
      _abandon(cache, done)
      raise
  for admitted in wave:
    wanted = _wanted(cache, admitted)
    slots = cache.reserve_captures(len(wanted))
    admitted.captures = dict(zip(wanted, slots))


def _admit_all(cache: PrefixCache, wave: list[_Admitted]) -> None:
  """Slots and pages for all; without room for one, no pin is left of any."""
  for index, admitted in enumerate(wave):
    try:
      admitted.number = cache.admit(
        admitted.request.tokens,
        admitted.match,
        admitted.pin,
        anchors=admitted.request.anchors,
        placed=admitted.request.placed,
        salt=admitted.request.salt,
      )
      _describe(cache, admitted)
    except CapacityError:
      for started in wave[:index]:
        cache.drop(started.number)
      for waiting in wave[index:]:
        cache.index.unpin(waiting.pin)
      raise


def _describe(cache: PrefixCache, admitted: _Admitted) -> None:
  """Notes what the placement may know of a request, before it is placed."""
  record, match = cache.running(cache.handle(admitted.number)), admitted.match
  seen = min(match.overlap_tokens, record.length - 1)
  record.features = cache.planner.describe(record.length, seen, match.features)


def _start_cold(cache: PrefixCache, admitted: _Admitted) -> None:
  """Takes nothing of what a request matched; its report says `no_room`.

  Its overlap stays as it was seen: the placement learns from it all the same.
  """
  if admitted.match.resume_blocks:
    admitted.match = admitted.match._replace(
      resume_blocks=0, slot=ZERO, pages=(), reason=Reason.NO_ROOM
    )
  admitted.pin = cache.pin(
    admitted.request.tokens, admitted.match, salt=admitted.request.salt
  )


def _abandon(cache: PrefixCache, admitted: list[_Admitted]) -> None:
  """Frees what the sequences of an interrupted call hold."""
  for one in admitted:
    if not one.inserted:
      cache.index.free(list(one.captures.values()))
    cache.drop(one.number)


def _wanted(cache: PrefixCache, admitted: _Admitted) -> list[int]:
  """Positions to capture, most useful first: shared ones, then the deepest."""
  request, chunk = admitted.request, cache.config.chunk
  wanted = {*request.anchors} if cache.stores else set()
  if request.placed:
    record = cache.running(cache.handle(admitted.number))
    wanted |= {*cache.planner.positions(record.length, record.features)}
  resume = admitted.match.resume_blocks * chunk
  ahead = {p for p in wanted | admitted.shared if p > resume}
  return sorted(ahead, key=lambda p: (p not in admitted.shared, -p))


def _segment(cache: PrefixCache, admitted: _Admitted) -> Segment:
  """The part of a plan that belongs to one request.

  It writes its lattice slot after the last whole chunk and its running slot at
  the end; a captured state takes the place of either.
  """
  chunk = cache.config.chunk
  record = cache.running(cache.handle(admitted.number))
  start = admitted.match.resume_blocks * chunk
  last_full = record.length // chunk * chunk
  writes = {record.length: record.running_slot, last_full: record.own_slot}
  writes |= admitted.captures
  if last_full > start:
    record.lattice_slot = writes[last_full]
  return Segment(
    tokens=record.tokens[start:],
    start=start,
    read=admitted.match.slot,
    writes=writes,
    spill=record.running_slot,
    pages=record.pages,
  )


def _scan(
  model: FrozenModel,
  cache: PrefixCache,
  segments: list[Segment],
  all_logits: bool,
) -> list[np.ndarray]:
  """Runs the segments packed together.

  Returns:
    Logits per segment: of its last token, or of all that were computed.
  """
  budget = cache.index.budget
  plan = build_plan(
    cache.config, segments, slots=budget.slots or 0, pages=budget.pages or 0
  )
  rows = all_rows(plan) if all_logits else last_rows(plan)
  logits, cache.pools = run_plan(model, cache.pools, plan, rows)
  if not all_logits:
    return list(logits)
  lengths = [segment.tokens.size for segment in segments]
  return np.split(logits, np.cumsum(lengths)[:-1])


def _insert(cache: PrefixCache, admitted: _Admitted) -> None:
  """Stores the prompt and lets the placement learn from its overlap."""
  chunk = cache.config.chunk
  record: Running = cache.running(cache.handle(admitted.number))
  if cache.stores:
    slots = {p // chunk: slot for p, slot in admitted.captures.items()}
    cache.store(record, slots)
  admitted.inserted = True
  overlap = min(admitted.match.overlap_tokens, record.length - 1)
  cache.planner.observe(
    overlap, entry=record.features, matched=admitted.match.features
  )


def _report(cache: PrefixCache, admitted: _Admitted, wave: int) -> Report:
  return Report(
    length=admitted.request.tokens.size,
    overlap=admitted.match.overlap_tokens,
    resumed=admitted.match.resume_blocks * cache.config.chunk,
    captured=tuple(sorted(admitted.captures)),
    reason=admitted.match.reason,
    wave=wave,
  )
