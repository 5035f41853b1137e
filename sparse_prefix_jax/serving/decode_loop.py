"""Requests of one caller, decoded together: what an engine drives.

`submit`, `step` and `cancel` are the verbs of a scheduler, whose place this
holds: whatever has them serves an `Engine`. Nothing here waits for a budget of
tokens or gives way to others: a step is the prefill of one request, or one
token of every sequence.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from sparse_prefix_jax.cache.index import CapacityError, Reason
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.running import SequenceHandle
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.serving.decode import decode
from sparse_prefix_jax.serving.prefill import prefill
from sparse_prefix_jax.serving.sampling import (
  Sampling,
  SamplingRow,
  sampling_rows,
)


class SampleHandle(NamedTuple):
  """One sample of a request.

  Attributes:
    number: Which request of its loop.
    sample: Which of its samples.
  """

  number: int
  sample: int = 0


class PromptStarted(NamedTuple):
  """A request was prefilled.

  Attributes:
    handle: Its first sample.
    restored: Tokens of the prompt whose state was kept.
    computed: Tokens of the prompt that were computed.
    reason: Why not more of them were restored.
  """

  handle: SampleHandle
  restored: int
  computed: int
  reason: Reason


class SampleToken(NamedTuple):
  """An id was drawn.

  Attributes:
    handle: Whose it is.
    id: The id.
    logprob: Its log probability.
    best: The most probable ids with theirs, as many as were asked for.
  """

  handle: SampleHandle
  id: int
  logprob: float
  best: tuple[tuple[int, float], ...] = ()


class SampleEnded(NamedTuple):
  """No more ids follow.

  Attributes:
    handle: Whose they were.
    why: "stop" after a stop token, "length" where there is no more room.
  """

  handle: SampleHandle
  why: str


LoopEvent: TypeAlias = PromptStarted | SampleToken | SampleEnded


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
  """What was submitted."""

  number: int
  prompt: np.ndarray
  sampling: Sampling
  max_tokens: int
  salt: bytes
  anchors: tuple[int, ...]
  stop_tokens: frozenset[int]
  judged: bool
  samples: int


@dataclasses.dataclass(eq=False)
class _Row:
  """A sequence that runs; `decoded` has one id that was not taken yet."""

  request: _Request
  sample: int
  sequence: SequenceHandle
  decoded: list[int]
  finished: bool = False

  @property
  def handle(self) -> SampleHandle:
    return SampleHandle(self.request.number, self.sample)


class DecodeLoop:
  """Prefills, decodes and samples the requests of one caller.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> loop = DecodeLoop(model, PrefixCache(model, capacity="4MiB"))
    >>> handles = loop.submit(np.arange(70), max_tokens=2)
    >>> [type(event).__name__ for event in loop.step()]
    ['PromptStarted', 'SampleToken']
    >>> [type(event).__name__ for event in loop.step()]
    ['SampleToken', 'SampleEnded']
  """

  def __init__(self, model: HybridDecoder, cache: PrefixCache) -> None:
    """Begins with no requests.

    Args:
      model: The model of the cache.
      cache: Where sequences run.
    """
    self._model, self._cache = model, cache
    self._rows_at_once = model.config.numerics.head_rows
    self._counts = sampler.no_counts(
      model.config.vocab_size, self._rows_at_once
    )
    self._waiting: list[_Request] = []
    self._running: list[_Row] = []
    self._number = 0

  def submit(
    self,
    prompt: np.ndarray,
    *,
    sampling: Sampling | None = None,
    max_tokens: int,
    salt: bytes = b"",
    anchors: Sequence[int] = (),
    stop_tokens: Iterable[int] = (),
    judged: bool = False,
    samples: int = 1,
  ) -> tuple[SampleHandle, ...]:
    """Takes a request; its first step is a later one.

    Args:
      prompt: Checked ids. [t]
      sampling: How ids are drawn; None for the most probable.
      max_tokens: How many to draw at most, at least 1.
      salt: Requests with different salts share nothing.
      anchors: Positions worth a state.
      stop_tokens: Ids after which nothing follows.
      judged: Whoever submits reads every id before the next one is computed,
        and closes each sample by `cancel`, also where it has finished.
      samples: How many to draw, of one prefill.

    Returns:
      A handle per sample.
    """
    self._number += 1
    request = _Request(
      number=self._number,
      prompt=np.asarray(prompt, np.int32),
      sampling=sampling or Sampling(),
      max_tokens=max_tokens,
      salt=salt,
      anchors=tuple(anchors),
      stop_tokens=frozenset(stop_tokens),
      judged=judged,
      samples=samples,
    )
    self._waiting.append(request)
    return tuple(SampleHandle(self._number, i) for i in range(samples))

  def step(self) -> tuple[LoopEvent, ...]:
    """Prefills the next request, or decodes one token of every sequence.

    Returns:
      What happened; nothing if there is nothing to do.

    Raises:
      CapacityError: If a sequence does not fit beside those that run.
    """
    if self._waiting:
      try:
        return self._start(self._waiting[0])
      except CapacityError:
        if not self._running:
          raise
    return self._decode([row for row in self._running if not row.finished])

  def hold(self, handle: SampleHandle) -> None:
    """Draws no more ids for a sample that is not closed yet.

    Args:
      handle: One of a request that is judged.
    """
    self._row(handle).finished = True

  def cancel(self, handle: SampleHandle, *, keep: int | None = None) -> None:
    """Ends a sample: what is canonical of it is stored, the rest is freed.

    Args:
      handle: One that is not closed yet.
      keep: Tokens from the start to store, None for all.

    Raises:
      ValueError: If it was closed before, or is not of this loop.
    """
    row = self._row(handle)
    self._running.remove(row)
    self._cache.release([row.sequence], keep=keep)

  def length(self, handle: SampleHandle) -> int:
    """Tokens of a sample that were computed, its prompt's among them."""
    return self._row(handle).sequence.length

  def abandon(self) -> None:
    """Closes whatever still runs, for a caller who gives up."""
    alive = set(self._cache.sequences)
    left = [row.sequence for row in self._running if row.sequence in alive]
    self._waiting, self._running = [], []
    self._cache.release(left)

  def _row(self, handle: SampleHandle) -> _Row:
    for row in self._running:
      if row.handle == handle:
        return row
    raise ValueError(f"{handle} was closed, has not started, or is of another.")

  def _start(self, request: _Request) -> tuple[LoopEvent, ...]:
    """Prefills a request and draws the first id of each sample."""
    out = prefill(
      self._model,
      self._cache,
      [request.prompt],
      anchors=[list(request.anchors)],
      salt=request.salt,
    )
    sequences = [*out.sequences]
    try:
      for _ in range(request.samples - 1):
        sequences.append(self._cache.fork(sequences[0]))
    except BaseException:
      self._cache.release(sequences, keep=request.prompt.size)
      raise
    self._waiting.remove(request)
    rows = [_Row(request, i, s, []) for i, s in enumerate(sequences)]
    self._running += rows
    (report,) = out.reports
    started = PromptStarted(
      rows[0].handle, report.resumed, report.recomputed, report.reason
    )
    logits = np.repeat(out.logits[0][None], len(rows), axis=0)
    return (started, *self._draw(rows, logits))

  def _decode(self, rows: list[_Row]) -> tuple[LoopEvent, ...]:
    """Takes the last id of each sequence and draws the next one."""
    if not rows:
      return ()
    ids = np.array([row.decoded[-1] for row in rows], np.int32)
    sequences = [row.sequence for row in rows]
    out = decode(self._model, self._cache, sequences, ids)
    for row, sequence in zip(rows, out.sequences, strict=True):
      row.sequence = sequence
    return tuple(self._draw(rows, out.logits))

  def _draw(self, rows: list[_Row], logits: np.ndarray) -> list[LoopEvent]:
    """Draws an id per row; a row that is at its end finishes."""
    events: list[LoopEvent] = []
    for first in range(0, len(rows), self._rows_at_once):
      part = slice(first, first + self._rows_at_once)
      drawn = self._sampled(rows[part], logits[part])
      for i, row in enumerate(rows[part]):
        events += self._drawn(row, i, drawn)
    return events

  def _sampled(self, rows: list[_Row], logits: np.ndarray) -> sampler.Sampled:
    """Runs the program; rows that are free are inactive."""
    size, vocab = self._rows_at_once, logits.shape[1]
    packed = [self._packed(i, row) for i, row in enumerate(rows)]
    free = size - len(rows)
    positions = [row.sequence.length for row in rows] + [0] * free
    drawn, self._counts = sampler.sample(
      jax.device_put(np.pad(logits, ((0, free), (0, 0)))),
      sampling_rows([*packed, *[None] * free], vocab),
      self._counts,
      np.array(positions, np.int32),
    )
    return jax.device_get(drawn)

  def _packed(self, slot: int, row: _Row) -> SamplingRow:
    """What a row asks for; its counts are made anew of its ids."""
    sampling, vocab = row.request.sampling, self._counts.shape[1]
    counts = sampler.NO_COUNTS
    if sampling.has_penalties:
      counts = slot
      decoded = np.array(row.decoded, np.int32)
      self._counts = sampler.set_counts(
        self._counts,
        np.int32(slot),
        sampler.counts_of(row.request.prompt, decoded, vocab),
      )
    allowed = sampling.allowed_after(row.decoded, vocab)
    return SamplingRow(sampling, row.sample, counts, allowed)

  def _drawn(self, row: _Row, i: int, drawn: Any) -> list[LoopEvent]:
    """Notes an id, and whether it is the last one."""
    token, request = int(drawn.ids[i]), row.request
    row.decoded.append(token)
    wanted = request.sampling.best
    best = zip(drawn.best_ids[i][:wanted], drawn.best_logprobs[i][:wanted])
    events: list[LoopEvent] = [
      SampleToken(
        row.handle,
        token,
        float(drawn.logprobs[i]),
        tuple((int(x), float(y)) for x, y in best),
      )
    ]
    why = self._why_last(row, token)
    if why is not None:
      row.finished = True
      events.append(SampleEnded(row.handle, why))
      if not request.judged:
        self.cancel(row.handle)
    return events

  def _why_last(self, row: _Row, token: int) -> str | None:
    """Why nothing follows an id, or None."""
    if token in row.request.stop_tokens:
      return "stop"
    longest = self._model.config.numerics.max_length
    full = row.sequence.length >= longest
    if full or len(row.decoded) >= row.request.max_tokens:
      return "length"
    return None
