"""Decoding that stays on the lattice.

A token is one step from the running slot. When it completes a chunk, the chunk
is run once more by the prefill program from the lattice carry before it: only
that canonical carry, and the canonical keys and values, are ever stored, so the
next turn of a conversation hits exactly.
"""

from collections.abc import Sequence as Several
from typing import NamedTuple

import jax
import numpy as np

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.request import check_ids
from sparse_prefix_jax.cache.running import Running, Sequence
from sparse_prefix_jax.kernels.chunks import NONE, ZERO, Rows
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.plan import Segment, build_plan, page_table
from sparse_prefix_jax.runtime.run import head_rows, last_rows, run_plan

_NO_ROWS = np.zeros(0, np.int64)


class DecodeOutput(NamedTuple):
  """Result of `decode`, in the order of the sequences.

  Attributes:
    logits: Float32 after the new token. [b vocab]
    sequences: The handles to use from here on.
  """

  logits: np.ndarray
  sequences: tuple[Sequence, ...]


def decode(
  model: HybridDecoder,
  cache: PrefixCache,
  sequences: Several[Sequence],
  next_tokens: at.Tokens,
  *,
  exact: bool = False,
) -> DecodeOutput:
  """One token for every sequence.

  The logits are a function of the tokens and of where decoding began: the same
  bits with and without the cache, whoever joins or leaves. With `exact` they
  are those that prefill gives for the same tokens, at the cost of a chunk of
  prefill per token, for whoever must re-prefill preempted requests.

  Args:
    model: The model of the cache.
    cache: Where the sequences run.
    sequences: Handles; any number, in any order.
    next_tokens: One id per sequence.
    exact: Re-run the padded chunk instead of stepping. A sequence keeps to the
      form that it began with.

  Returns:
    Logits and the handles to go on with. If the step is interrupted
    (KeyboardInterrupt, a failing device), its sequences are released.

  Raises:
    ValueError: If a handle is stale or named twice, an id is out of vocabulary,
      a sequence is at max_length or changes its form; nothing has changed then.
    CapacityError: If a new chunk begins and there is no page for it; nothing
      has changed then.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache
    >>> from sparse_prefix_jax import prefill, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity=4 << 20)
    >>> out = prefill(model, cache, [[1, 2, 3]])
    >>> out = decode(model, cache, out.sequences, [4])
    >>> out.logits.shape, out.sequences[0].length
    ((1, 512), 4)
    >>> cache.release(out.sequences)
  """
  frozen = cache.check_model(model)
  records = _checked(cache, sequences, next_tokens, exact)
  tokens = check_ids("next_tokens", next_tokens, cache.config)
  _reserve_pages(cache, records)
  for record, token in zip(records, tokens, strict=True):
    record.tokens = np.append(record.tokens, token)
    record.exact = exact
  try:
    run = _rerun_chunks if exact else _step_rows
    logits = run(frozen, cache, records)
    if not exact:
      _make_canonical(frozen, cache, records)
  except BaseException:
    # A step writes the slot that it reads: it cannot be tried again.
    for sequence in sequences:
      cache.drop(sequence.number)
    cache.recover()
    raise
  handles = tuple(cache.handle(sequence.number) for sequence in sequences)
  return DecodeOutput(logits, handles)


def _checked(
  cache: PrefixCache,
  sequences: Several[Sequence],
  next_tokens: at.Tokens,
  exact: bool,
) -> list[Running]:
  """The records of all sequences; refuses what cannot take a token."""
  if len(sequences) != len(next_tokens):
    raise ValueError(
      f"next_tokens has {len(next_tokens)} ids for {len(sequences)} sequences; "
      "it needs one each."
    )
  if len({sequence.number for sequence in sequences}) != len(sequences):
    raise ValueError("sequences: one is named twice.")
  records = [cache.running(sequence) for sequence in sequences]
  for sequence, record in zip(sequences, records, strict=True):
    if record.length >= cache.config.max_length:
      raise ValueError(
        f"{sequence} is at max_length = {cache.config.max_length} of the "
        "model's configuration."
      )
    if record.exact not in (None, exact):
      raise ValueError(
        f"{sequence} has been decoded with exact={record.exact}; a sequence "
        "keeps to one form."
      )
  return records


def _reserve_pages(cache: PrefixCache, records: list[Running]) -> None:
  """A page for every sequence whose next token begins a chunk."""
  begin = [r for r in records if r.length % cache.config.chunk == 0]
  pages = cache.index.reserve(0, len(begin)).pages
  for record, page in zip(begin, pages, strict=True):
    record.pages.append(page)


def _step_rows(
  model: programs.FrozenModel, cache: PrefixCache, records: list[Running]
) -> np.ndarray:
  """The decode program, `decode_rows` sequences at a time."""
  rows, parts = cache.config.decode_rows, []
  for start in range(0, len(records), rows):
    part = records[start : start + rows]
    hidden, cache.pools = programs.decode_step(
      model, cache.pools, _step(cache, part)
    )
    parts.append(head_rows(model, hidden, np.arange(len(part))))
  return np.concatenate(parts)


def _step(cache: PrefixCache, records: list[Running]) -> programs.Step:
  """Input of the decode program; free rows are inactive."""
  config = cache.config
  size, chunk = config.decode_rows, config.chunk
  tokens, read, write, position = np.zeros((4, size), np.int32)
  read[:], write[:] = ZERO, NONE
  for i, record in enumerate(records):
    begins = (record.length - 1) % chunk == 0
    tokens[i], position[i] = record.tokens[-1], record.length - 1
    read[i] = record.lattice_slot if begins else record.running_slot
    write[i] = record.running_slot
  pages = [record.pages for record in records]
  pages += [[]] * (size - len(records))
  active = np.arange(size) < len(records)
  table = page_table(config, pages)
  tokens, table, *rows = jax.device_put(
    (tokens, table, read, write, position, active)
  )
  return programs.Step(tokens, Rows(*rows), table)


def _make_canonical(
  model: programs.FrozenModel, cache: PrefixCache, records: list[Running]
) -> None:
  """Runs completed chunks once more by the prefill program, without a head."""
  chunk = cache.config.chunk
  completed = [r for r in records if r.length % chunk == 0]
  if completed:
    _run_last_chunks(model, cache, completed, head=False)


def _rerun_chunks(
  model: programs.FrozenModel, cache: PrefixCache, records: list[Running]
) -> np.ndarray:
  """The exact form: the padded chunk again, and the head on its last token."""
  return _run_last_chunks(model, cache, records, head=True)


def _run_last_chunks(
  model: programs.FrozenModel,
  cache: PrefixCache,
  records: list[Running],
  head: bool,
) -> np.ndarray:
  """The last chunk of each sequence from the lattice carry before it.

  A completed chunk leaves its carry in the sequence's own slot, which may be
  the one that it reads; a slot that others pin is never written.
  """
  chunk, budget = cache.config.chunk, cache.index.budget
  segments = []
  for record in records:
    start = (record.length - 1) // chunk * chunk
    completed = record.length % chunk == 0
    segments.append(
      Segment(
        tokens=record.tokens[start:],
        start=start,
        read=record.lattice_slot,
        writes={record.length: record.own_slot} if completed else {},
        spill=record.running_slot,
        pages=record.pages,
      )
    )
    if completed:
      record.lattice_slot = record.own_slot
      record.decoded = True
  plan = build_plan(
    cache.config, segments, slots=budget.slots or 0, pages=budget.pages or 0
  )
  rows = last_rows(plan) if head else _NO_ROWS
  logits, cache.pools = run_plan(model, cache.pools, plan, rows)
  return logits
