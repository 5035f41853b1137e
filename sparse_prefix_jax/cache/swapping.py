"""A sequence that waits in the host, or captures a state that others wait for.

Only `cache/store.py` calls this module.
"""

from sparse_prefix_jax.cache.canonical import renumber
from sparse_prefix_jax.cache.index import (
  CapacityError,
  Lease,
  PrefixIndex,
  Renumbering,
)
from sparse_prefix_jax.cache.running import Running

# Numbers of what waits in the host: no slot, and no sentinel of a kernel.
_RUNNING: int = -10
_OWN: int = -11


def private_parts(running: Running, chunk: int) -> Lease:
  """What to copy of a sequence, whether it is in the pools or in the host.

  Args:
    running: The sequence.
    chunk: Tokens of a chunk, c.

  Returns:
    Running slot and own slot, and the private pages that something was
    written to.
  """
  tokens = running.length if running.prefilled else running.computed
  written = running.pages[running.stored : -(-tokens // chunk)]
  return Lease((running.running_slot, running.own_slot), tuple(written))


def leave(index: PrefixIndex, running: Running) -> None:
  """Frees what a sequence leases; its pin stays.

  States that it was still to capture are not captured any more.

  Args:
    index: Gets slots and pages back.
    running: In the host from here on.
  """
  index.free(running.leased_slots(), running.leased_pages())
  index.withdraw(running.number)
  given_up = {*running.captures}
  running.captures = {}
  running.captured = tuple(p for p in running.captured if p not in given_up)
  slots = {running.running_slot: _RUNNING, running.own_slot: _OWN}
  private = running.pages[running.stored :]
  pages = {page: -1 - i for i, page in enumerate(private)}
  renumber(running, Renumbering(slots, pages))


def come_back(index: PrefixIndex, running: Running) -> None:
  """Leases slots and pages for a sequence that waits in the host.

  Args:
    index: Leased from, evicting states if need be.
    running: In the pools from here on, once its parts are copied.

  Raises:
    CapacityError: If there is no room; nothing has changed then.
  """
  waiting = running.pages[running.stored :]
  lease = index.reserve(2, len(waiting))
  slots = {_RUNNING: lease.slots[0], _OWN: lease.slots[1]}
  renumber(running, Renumbering(slots, dict(zip(waiting, lease.pages))))


def await_state(index: PrefixIndex, running: Running, position: int) -> bool:
  """Has a sequence capture one more state, as `PrefixStore.await_state` says.

  Args:
    index: A slot is leased of it.
    running: In the pools.
    position: A lattice point of its prompt.

  Returns:
    Whether it will.
  """
  if not running.computed < position <= running.prompt_length:
    return False
  if position in running.captures:
    return True
  try:
    slot = index.reserve(1, 0).slots[0]
  except CapacityError:
    return False
  running.captures = running.captures | {position: slot}
  running.captured = tuple(sorted({*running.captured, position}))
  return True
