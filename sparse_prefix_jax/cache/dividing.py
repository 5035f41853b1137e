"""Another share for states: compiled ahead, moved layer by layer, probed.

A move happens between calls, when no plan is built that is not dispatched. What
fails leaves a working cache with its entries, and a share whose programs give
other bits is never taken again.
"""

import concurrent.futures
import functools
import time
from typing import Protocol, runtime_checkable

import jax

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import Pools
from sparse_prefix_jax.runtime.ahead import compile_ahead, probe
from sparse_prefix_jax.runtime.pools import are_lost
from sparse_prefix_jax.runtime.programs import FrozenModel
from sparse_prefix_jax.runtime.resize import moved_pools, resized_pools

_POLL_SECONDS = 0.005


@functools.cache
def _compiler() -> concurrent.futures.ThreadPoolExecutor:
  """One thread for all caches, started when something is to be compiled."""
  return concurrent.futures.ThreadPoolExecutor(1, "compile-ahead")


@runtime_checkable
class PoolOwner(Protocol):
  """What is divided: a `PrefixCache`, as far as a move needs it."""

  store: PrefixStore
  config: ModelConfig

  @property
  def pools(self) -> Pools:
    """The device arrays."""
    ...

  @pools.setter
  def pools(self, pools: Pools) -> None:
    """What a program returned in their place."""

  @property
  def frozen(self) -> FrozenModel:
    """The parameters, as programs take them."""
    ...

  def deliver(self) -> None:
    """Runs the handlers of signals that came meanwhile."""


class Division:
  """Keeps the pools of a cache divided as its chooser says.

  Args:
    cache: Whose pools and store are changed.
    chooser: Of its store.
  """

  def __init__(self, cache: PoolOwner, chooser: ShareChooser) -> None:
    """Moves nothing yet."""
    self._cache, self._chooser = cache, chooser
    self._compiled: dict[float, concurrent.futures.Future[None]] = {}
    self._bits: str | None = None
    self._probed = 2, max(cache.config.ladder)  # slots and pages

  def prepare(self) -> None:
    """Before a call: compiles what is chosen, moves to what is due."""
    chooser = self._chooser
    for share in {chooser.chosen, chooser.due} - {chooser.share}:
      self._compile(share)
    if chooser.due != chooser.share:
      self._move(chooser.due)

  def _compile(self, share: float) -> None:
    """Starts to compile the programs of a share, once."""
    if share in self._compiled:
      return
    slots, pages = self._chooser.sizes.split(share)
    # No array of the cache stays with the thread: shapes are read now.
    self._compiled[share] = _compiler().submit(
      compile_ahead,
      self._cache.frozen,
      jax.tree.map(lambda leaf: leaf, self._cache.pools),
      slots=slots,
      pages=pages,
    )

  def _move(self, share: float) -> None:
    """Moves to a share; back again, if its programs give other bits."""
    chooser, store = self._chooser, self._cache.store
    before = store.index.budget
    try:
      if self._bits is None:
        self._bits = self._probe()
      self._wait(share)
      copied = self._resize(*chooser.sizes.split(share))
      if self._probe() == self._bits:
        chooser.moved(share, copied)
      else:
        self._resize(before.slots or 0, before.pages or 0)
        chooser.exclude(share)
    except CapacityError:
      return  # Running sequences need the room: at the next call, perhaps.
    except (MemoryError, jax.errors.JaxRuntimeError):
      if are_lost(self._cache.pools):
        raise
      chooser.exclude(share)

  def _wait(self, share: float) -> None:
    """Until its programs are compiled; signals are delivered meanwhile."""
    compiling = self._compiled[share]
    while not compiling.done():
      self._cache.deliver()
      time.sleep(_POLL_SECONDS)
    compiling.result()

  def _resize(self, slots: int, pages: int) -> int:
    """Renumbers what is live, then shrinks and extends, layer by layer.

    Returns:
      Bytes copied.
    """
    cache, store = self._cache, self._cache.store
    moved = store.begin_resize(slots, pages, spare=self._probed)
    for pools in moved_pools(cache.pools, moved.slots, moved.pages):
      cache.pools = pools
    store.renumber(moved)
    for pools in resized_pools(cache.pools, slots, pages):
      cache.pools = pools
    store.end_resize(slots, pages)
    bytes_of = store.index.budget.bytes_of
    return bytes_of(len(moved.slots), len(moved.pages)) + bytes_of(slots, pages)

  def _probe(self) -> str:
    """Bits of fixed tokens through every program, in free slots and pages.

    Raises:
      CapacityError: If running sequences leave no room for it.
    """
    cache, bits = self._cache, []
    with cache.store.spare(*self._probed) as lease:
      probing = probe(cache.frozen, cache.pools, lease.slots, lease.pages)
      for pools, digest in probing:
        cache.pools = pools
        bits.append(digest)
    return bits[-1]
