"""What a running sequence has to compute next: looks, nothing changes."""

from sparse_prefix_jax.cache.running import Running
from sparse_prefix_jax.runtime.segment import Segment


def next_segment(
  running: Running, chunk: int, limit: int | None = None
) -> Segment | None:
  """The part of a prompt, or the chunk of decoded tokens, to compute next.

  Args:
    running: The sequence.
    chunk: Tokens of a chunk, c.
    limit: As in `PrefixStore.next_segment`.

  Returns:
    The segment, or None where nothing is left to compute.
  """
  if not running.prefilled:
    return _prompt_segment(running, chunk, limit)
  partial = running.exact and running.computed < running.length
  if partial or running.completed(chunk):
    return _last_chunk(running, chunk)
  return None


def _prompt_segment(running: Running, chunk: int, limit: int | None) -> Segment:
  """The rest of the prompt, or a part of it that ends on the lattice.

  It writes the own slot after the last whole chunk and the running slot at
  the end or the cut; a captured state takes the place of either.
  """
  start, length = running.computed, running.prompt_length
  whole = max(1, (length if limit is None else limit) // chunk) * chunk
  stop = length if limit is None else min(length, start + whole)
  writes = {
    stop: running.running_slot,
    length // chunk * chunk: running.own_slot,
  } | running.captures
  return Segment(
    tokens=running.tokens.ids[start:stop],
    start=start,
    stop=stop,
    read=running.carry_slot,
    writes={p: s for p, s in writes.items() if start < p <= stop},
    spill=running.running_slot,
    pages=running.pages,
  )


def _last_chunk(running: Running, chunk: int) -> Segment:
  """The chunk of the last token, from the lattice carry before it.

  A completed chunk leaves its carry in the sequence's own slot, which may be
  the one that it reads; a slot that others pin is never written.
  """
  start = (running.length - 1) // chunk * chunk
  completed = running.length % chunk == 0
  return Segment(
    tokens=running.tokens.ids[start : running.length],
    start=start,
    stop=running.length,
    read=running.lattice_slot,
    writes={running.length: running.own_slot} if completed else {},
    spill=running.running_slot,
    pages=running.pages,
  )
