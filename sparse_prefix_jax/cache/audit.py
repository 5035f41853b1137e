"""Whether what running sequences hold is what an index has given them."""

from collections.abc import Sequence

from sparse_prefix_jax.cache.index import PrefixIndex
from sparse_prefix_jax.cache.running import Running


def audit_sequences(index: PrefixIndex, running: Sequence[Running]) -> None:
  """Compares leases and pins with the sequences that hold them.

  Args:
    index: Checked already.
    running: All sequences of its store.

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
  if stats.pins != len(running):
    raise AssertionError(
      f"prefix store: {stats.pins} pins for {len(running)} sequences."
    )
