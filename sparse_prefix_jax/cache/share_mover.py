"""Another share for states: compiled ahead, moved layer by layer, probed.

A move happens between calls, when no plan is built that is not dispatched. What
fails leaves a working cache with its entries, and a share whose programs give
other bits is never taken again.
"""

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from sparse_prefix_jax.cache.index import CapacityError
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import Pools
from sparse_prefix_jax.runtime.ahead import (
  ahead_shapes,
  compile_ahead,
  probe,
)
from sparse_prefix_jax.runtime.pools import are_lost
from sparse_prefix_jax.runtime.programs import FrozenModel
from sparse_prefix_jax.runtime.resize import moved_pools, resized_pools

_POLL_SECONDS = 0.005


@functools.cache
def _compiler() -> concurrent.futures.ThreadPoolExecutor:
  """One thread for all caches, started when something is to be compiled."""
  return concurrent.futures.ThreadPoolExecutor(1, "compile-ahead")


def _compile_all(ahead: Sequence[tuple[FrozenModel, Any]]) -> None:
  """Compiles the programs of several pools; those that are compiled stay."""
  for weights, shapes in ahead:
    compile_ahead(weights, shapes)


@runtime_checkable
class Promise(Protocol):
  """Who has accepted requests that may come to need more than they hold."""

  def most_pages(self) -> int:
    """Pages that the longest of them needs at its end, alone."""
    ...


@runtime_checkable
class PoolOwner(Protocol):
  """What is divided: a `PrefixCache`, as far as a move needs it."""

  store: PrefixStore
  config: ModelConfig

  @property
  def promises(self) -> Collection[Promise]:
    """Who has accepted requests."""
    ...

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

  def call(self) -> contextlib.AbstractContextManager[object]:
    """One call, alone."""
    ...

  def deliver(self) -> None:
    """Runs the handlers of signals that came meanwhile."""


class ShareMover:
  """Keeps the pools of a cache divided as its chooser says.

  Args:
    cache: Whose pools and store are changed.
    chooser: Of its store.
  """

  def __init__(self, cache: PoolOwner, chooser: ShareChooser) -> None:
    """Moves nothing yet."""
    self._cache, self._chooser = cache, chooser
    self._compiled: dict[float, concurrent.futures.Future[None]] = {}

  def wait(self) -> None:
    """Waits for the programs of a share that is due; nobody is locked out."""
    chooser = self._chooser
    if chooser.due == chooser.share:
      return
    with self._cache.call():
      due, compiling = chooser.due, None
      if due != chooser.share and self._has_room(due):
        self._compile(due)
        compiling = self._compiled.get(due)
    while compiling is not None and not compiling.done():
      time.sleep(_POLL_SECONDS)

  def move_if_due(self) -> None:
    """In a call, at first: compiles what is chosen, moves to what is due."""
    chooser = self._chooser
    for share in {chooser.chosen, chooser.due} - {chooser.share}:
      self._compile(share)
    if chooser.due != chooser.share and self._has_room(chooser.due):
      self._move(chooser.due)

  def _has_room(self, share: float) -> bool:
    """Whether a share has room for what runs, a probe, and what is promised."""
    divided, store = self._chooser.divided, self._cache.store
    slots, pages = divided.split(share)
    try:
      store.check_resize(slots, pages, spare=divided.spare)
    except CapacityError:
      return False  # At a later call, perhaps.
    return all(one.most_pages() <= pages for one in self._cache.promises)

  def _compile(self, share: float) -> None:
    """Starts to compile the programs of a share, once."""
    if share in self._compiled:
      return
    cache, chooser = self._cache, self._chooser
    # A probe of today's pools runs programs that no request may have needed.
    # The thread gets shapes: an array would live as long as it compiles.
    ahead = [
      ahead_shapes(cache.frozen, cache.pools, slots=slots, pages=pages)
      for slots, pages in map(chooser.divided.split, (chooser.share, share))
    ]
    try:
      self._compiled[share] = _compiler().submit(_compile_all, ahead)
    except RuntimeError:  # The interpreter starts no thread any more.
      self._chooser.exclude(share)

  def _move(self, share: float) -> None:
    """Moves to a share; back again, if its programs give other bits.

    Whatever fails, the share of the chooser, the limits of the store and the
    size of the pools agree afterwards.
    """
    chooser, store = self._chooser, self._cache.store
    before = store.index.budget.slots or 0, store.index.budget.pages or 0
    there = chooser.divided.split(share)
    try:
      bits = self._probe()
      if not self._is_compiled(share):
        return
      copied = self._resize(*there, back=before)
      if self._probes_as(bits):
        chooser.moved(share, copied)
        return
      self._resize(*before, back=before)
    except CapacityError:
      return  # Running sequences need the room: at the next call, perhaps.
    except (MemoryError, jax.errors.JaxRuntimeError):
      if are_lost(self._cache.pools):
        raise
    chooser.exclude(share)

  def _is_compiled(self, share: float) -> bool:
    """Waits, once more, until its programs are; signals are delivered.

    Another call may have made another share due since `wait`.
    """
    compiling = self._compiled.get(share)
    if compiling is None:
      return False
    while not compiling.done():
      self._cache.deliver()
      time.sleep(_POLL_SECONDS)
    if compiling.exception() is None:
      return True
    self._chooser.exclude(share)
    return False

  def _resize(self, slots: int, pages: int, *, back: tuple[int, int]) -> int:
    """Renumbers what is live, then shrinks and extends, layer by layer.

    Args:
      slots: That there will be.
      pages: That there will be.
      back: What there are again if it fails.

    Returns:
      Bytes copied.
    """
    cache, store = self._cache, self._cache.store
    moved = store.begin_resize(slots, pages, spare=self._chooser.divided.spare)
    try:
      for pools in moved_pools(cache.pools, moved.slots, moved.pages):
        cache.pools = pools
      store.renumber(moved)
      self._resize_pools(slots, pages)
    except BaseException:
      if not are_lost(cache.pools):
        self._resize_pools(*back)
        store.end_resize(*back)
      raise
    store.end_resize(slots, pages)
    bytes_of = store.index.budget.bytes_of
    return bytes_of(len(moved.slots), len(moved.pages)) + bytes_of(slots, pages)

  def _resize_pools(self, slots: int, pages: int) -> None:
    """Shrinks and extends, layer by layer."""
    for pools in resized_pools(self._cache.pools, slots, pages):
      self._cache.pools = pools

  def _probes_as(self, bits: str) -> bool:
    """Whether the programs give the same bits; not if one of them fails."""
    try:
      return self._probe() == bits
    except (MemoryError, jax.errors.JaxRuntimeError):
      if are_lost(self._cache.pools):
        raise
      return False

  def _probe(self) -> str:
    """Bits of fixed tokens through every program, in free slots and pages.

    Raises:
      CapacityError: If running sequences leave no room for it.
    """
    cache, bits = self._cache, []
    with cache.store.spare(*self._chooser.divided.spare) as lease:
      probing = probe(cache.frozen, cache.pools, lease.slots, lease.pages)
      for pools, digest in probing:
        cache.pools = pools
        bits.append(digest)
    return bits[-1]
