"""Whether what running sequences hold is what an index has given them."""

from collections.abc import Sequence

from sparse_prefix_jax.cache.index import PrefixIndex
from sparse_prefix_jax.cache.running import Running


def audit_sequences(
  index: PrefixIndex,
  running: Sequence[Running],
  swapped: Sequence[Running],
  chunk: int,
) -> None:
  """Compares leases and pins with the sequences that hold them.

  Args:
    index: Checked already.
    running: All sequences of its store in the pools.
    swapped: Those in the host: they pin, and lease nothing.
    chunk: Tokens of a chunk, c.

  Raises:
    AssertionError: One sentence on the first thing that does not add up.
  """
  stats = index.stats
  slots = [slot for one in running for slot in one.leased_slots()]
  pages = [page for one in running for page in one.leased_pages()]
  for kind, held, leased in (
    ("slots", slots, stats.leased_slots),
    ("pages", pages, stats.leased_pages),
  ):
    if len(set(held)) != len(held) or len(held) != leased:
      raise AssertionError(
        f"prefix store: sequences hold {len(held)} {kind}, {leased} are leased."
      )
  for one in running:
    if min(one.running_slot, one.own_slot) < 0:
      raise AssertionError(f"prefix store: {one.handle} lacks a slot.")
  for one in swapped:
    if one.leased_slots() or one.leased_pages() or one.captures:
      raise AssertionError(f"prefix store: {one.handle} holds what is freed.")
  sequences = len(running) + len(swapped)
  if stats.pins != sequences:
    raise AssertionError(
      f"prefix store: {stats.pins} pins for {sequences} sequences."
    )
  captures = {(one.number, p // chunk) for one in running for p in one.captures}
  awaited = index.worth.awaited if index.worth is not None else ()
  for number, depth in awaited:
    if (number, depth) not in captures:
      raise AssertionError(
        f"prefix store: nobody captures the state at {depth} chunks that "
        f"sequence {number} is to capture."
      )
