"""Prefill: match, open, next segment, run, commit.

The page to read first: `prefill` is the whole idea.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.index import Reason
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import check_requests
from sparse_prefix_jax.cache.running import Running, SequenceHandle
from sparse_prefix_jax.cache.waves import next_wave
from sparse_prefix_jax.kinds import check_flag
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime.run import all_rows, last_rows
from sparse_prefix_jax.runtime.segment import Segment
from sparse_prefix_jax.serving.checks import check_cache


class PrefillReport(NamedTuple):
  """What the cache did for one request; positions and lengths in tokens.

  Attributes:
    length: Of the prompt.
    overlap: Leading tokens that were known.
    resumed: Position of the state that it resumed from.
    captured: Positions at which states were captured.
    states: States on its path that it asked for and that were stored when it
      was computed; what ran after it may have evicted some.
    reason: Why it did not resume any deeper.
    wave: Which wave of the batch it ran in.
    expected_lost: Tokens of known whole chunks that it was expected to compute
      again, as the statistics were when the entry that it matched had ended.
      None where the placement has none, or nothing was matched. If it weighs
      all states (`adaptive`), the average over whatever prompt comes next, as
      it was when a sequence ended last, and never None.
    realised_lost: Those that it does compute again; `lost` counts those of a
      chunk that is known in part as well, which no state could have saved.
  """

  length: int
  overlap: int
  resumed: int
  captured: tuple[int, ...]
  states: int
  reason: Reason
  wave: int
  expected_lost: float | None
  realised_lost: int

  @property
  def lost(self) -> int:
    """Tokens that were known and are computed again; `reason` says why."""
    return max(self.overlap - self.resumed, 0)

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
  sequences: tuple[SequenceHandle, ...]
  reports: tuple[PrefillReport, ...]


def prefill(
  model: HybridDecoder,
  cache: PrefixCache,
  prompts: Sequence[at.Tokens],
  *,
  anchors: Sequence[Sequence[int]] | None = None,
  capture: Sequence[Sequence[int]] | None = None,
  all_logits: bool = False,
  salt: str | bytes = b"",
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
      end of a system prompt or a document, and the boundary before the
      generation prompt of a chat; floored to the lattice.
    capture: Per request, the positions to capture: lattice points up to its
      length; instead of placement and anchors. What another request of the
      batch waits for is captured besides.
    all_logits: Logits of every computed token instead of the last one.
    salt: Requests with different salts share nothing.

  Returns:
    Logits, running sequences and a report per request. Release the sequences
    when they are done: they hold two states and their last pages, and keep
    what they resumed from in the cache.

  Raises:
    ValueError: If an argument is out of range; nothing has changed then.
    CapacityError: If the running sequences do not fit; those of this call are
      released then.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity="4MiB")
    >>> document = list(range(200))
    >>> for question in ([7], [8, 9]):
    ...   out = prefill(model, cache, [document + question])
    ...   cache.release(out.sequences)
    >>> out.reports[0].resumed, out.reports[0].recomputed
    (192, 10)
  """
  check_cache(cache)
  check_flag("all_logits", all_logits)
  waiting = check_requests(cache.limits, prompts, anchors, capture, salt)
  if capture is not None and not cache.store.stores:
    raise ValueError(
      "capture was given, but placement no_cache of this cache stores nothing."
    )
  done: list[_Done] = []
  cache.await_move()
  with cache.call() as mine:
    cache.check_model(model)
    cache.move_if_due()
    for request in waiting:
      cache.store.check_fits(request)
    while waiting:
      wave = next_wave(cache.store, waiting)
      opened = cache.store.open(wave.requests, wave.shared)
      mine += opened
      segments = [_rest(cache, running) for running in opened]
      rows = cache.run(segments, all_rows if all_logits else last_rows)
      for running, segment in zip(opened, segments):
        cache.store.commit(running, segment)
      logits = _by_request(rows, segments) if all_logits else rows
      number = 1 + max((one.report.wave for one in done), default=-1)
      tell = partial(_done, wave=number, chunk=cache.store.chunk)
      done += map(tell, opened, logits)
      waiting = wave.later
    done.sort(key=lambda one: one.index)
    return PrefillOutput(
      logits=tuple(one.logits for one in done),
      sequences=tuple(one.sequence for one in done),
      reports=tuple(one.report for one in done),
    )


class _Done(NamedTuple):
  """What a request gave; `index` is its place in the batch."""

  index: int
  logits: np.ndarray
  sequence: SequenceHandle
  report: PrefillReport


def _rest(cache: PrefixCache, running: Running) -> Segment:
  """All that is left to compute of a prompt: at least its last token."""
  segment = cache.store.next_segment(running)
  assert segment is not None
  return segment


def _by_request(
  rows: np.ndarray, segments: Sequence[Segment]
) -> list[np.ndarray]:
  """The logits of all tokens, cut where one request ends."""
  lengths = [segment.tokens.size for segment in segments]
  return np.split(rows, np.cumsum(lengths)[:-1])


def _done(
  running: Running, logits: np.ndarray, *, wave: int, chunk: int
) -> _Done:
  """The result of a request that was just committed."""
  whole = running.match.overlap_blocks * chunk
  report = PrefillReport(
    length=running.prompt_length,
    overlap=running.match.overlap_tokens,
    resumed=running.resumed,
    captured=running.captured,
    states=running.states,
    reason=running.match.reason,
    wave=wave,
    expected_lost=running.expected_lost,
    realised_lost=max(whole - running.resumed, 0),
  )
  return _Done(running.request.index, logits, running.handle, report)
