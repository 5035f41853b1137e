"""PrefixCache: a store, the pools of one model, and a lock."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np

from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.cache.call_lock import CallLock
from sparse_prefix_jax.cache.choices import (
  checked_policy,
  checked_share,
  divided_capacity,
  serving_planner,
)
from sparse_prefix_jax.cache.counts import StoreStats
from sparse_prefix_jax.cache.divided_capacity import REMEMBERED, host_memory
from sparse_prefix_jax.cache.identity import (
  check_config,
  held_model,
  hold_equal,
)
from sparse_prefix_jax.cache.index import Budget, Eviction, eviction_for
from sparse_prefix_jax.cache.request import Limits, listed
from sparse_prefix_jax.cache.running import Running, SequenceHandle
from sparse_prefix_jax.cache.share_chooser import ShareChooser
from sparse_prefix_jax.cache.share_mover import Promise, ShareMover
from sparse_prefix_jax.cache.store import Copies, PrefixStore
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.cost import PrefillCost
from sparse_prefix_jax.models.decoder import HybridDecoder, Pools
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import SHARED, PlacementPolicy
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.compiling import check_not_traced
from sparse_prefix_jax.runtime.plan import Plan, build_plan
from sparse_prefix_jax.runtime.pools import allocate, are_lost, copy_sequence
from sparse_prefix_jax.runtime.programs import FrozenModel, Step
from sparse_prefix_jax.runtime.run import head_rows, run_groups
from sparse_prefix_jax.runtime.segment import Segment


class PrefixCache:
  """Exact states at sparse positions, keys and values, under one byte budget.

  A host object that owns device arrays. `prefill` and `decode` work on it; what
  is held (stored states and running sequences together) never exceeds
  `capacity`. Nor does the device memory of its pools, with two exceptions: on a
  TPU, pools of heads of 64 are padded and take twice the bytes counted here;
  and while the share of states moves, one layer is held twice.

  Any number of threads may call it: each call waits for its turn. A signal that
  comes during a call is delivered between two programs; a call that it, or a
  failure, interrupts ends its own sequences and nothing else.

  Attributes:
    config: The configuration of its model.
    store: What is stored, where, and what runs; integers only.
    pools: Device arrays; programs donate and replace them.
    promises: Who has accepted requests: states get no share under which one of
      them could not end.
    replaced: How often its weights were replaced.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> cache = PrefixCache(model, capacity="4MiB", placement="last")
    >>> cache.stats().held_bytes
    0
  """

  def __init__(
    self,
    model: HybridDecoder,
    *,
    capacity: int | str,
    placement: PlacementPolicy | str | None = None,
    eviction: Eviction | None = None,
    cost: PrefillCost | None = None,
    state_share: float | None = None,
    remembered: int | str = REMEMBERED,
  ) -> None:
    """Allocates the pools.

    Args:
      model: Whose states to keep.
      capacity: Bytes for states, keys and values, stored or in use; a number,
        or a size such as "4GiB".
      placement: A policy, or a name with its budget, such as "conditional:1".
        None is "adaptive", which weighs all states against each other and has
        nothing to set; or "last", where an eviction of others is named.
      eviction: "lru", "fifo" or another name of `EVICTIONS`, or a rule of your
        own, its class; None is "lru", or what the placement brings: `adaptive`
        evicts by its own "index".
      cost: What prefill costs, which `optimal` and `conditional` spare; by
        default the operations of the configuration, and `measure_prefill`
        gives seconds of this machine.
      state_share: Share of the capacity that is allocated for states; the rest
        is for keys and values. None follows the requests: every 50 of them
        the share may move to another of eight. A model with one kind of layers
        gives it all, whatever is said.
      remembered: Bytes of host memory, by default 192 MiB, for prompts without
        states; of `adaptive` two thirds are for what it learns of prefixes.

    Raises:
      ValueError: If a choice is unknown or out of range, weights are divided,
        or the capacity is too small for one sequence of two slots and a page.
    """
    self._served, self.replaced = held_model(model), 0
    check_not_traced(self.frozen.leaves[0])
    self.config = model.config
    capacity = parse_bytes(capacity, name="capacity")
    memory = parse_bytes(remembered, name="remembered")
    divided = divided_capacity(self.config, capacity)
    share = checked_share(state_share, divided)
    slots, pages = divided.split(share)
    chunk = self.config.numerics.chunk
    policy = checked_policy(placement, chunk, eviction)
    rule = eviction_for(policy.name, eviction)
    self.store = PrefixStore(
      Budget(
        capacity_bytes=capacity,
        slot_bytes=state_bytes(self.config),
        page_bytes=page_bytes(self.config),
        slots=slots,
        pages=pages,
        **host_memory(memory, weighs=policy.name in SHARED),
      ),
      serving_planner(policy, self.config, cost),
      chunk=chunk,
      eviction=rule,
      stores=policy.name != "no_cache",
    )
    self._lock = CallLock()
    self.promises = weakref.WeakSet[Promise]()
    with self._lock.held():
      self._pools: Pools | None = self._fresh_pools()
    self._mover: ShareMover | None = None
    if state_share is None and len(divided.usable) > 1:
      chooser = ShareChooser(self.store, divided, rule)
      self.store.chooser = chooser
      self._mover = ShareMover(self, chooser)

  @property
  def pools(self) -> Pools:
    """The device arrays; made anew where a failing program took them."""
    if self._pools is None:
      self._pools = self._fresh_pools()
    return self._pools

  @pools.setter
  def pools(self, pools: Pools) -> None:
    """What a program returned in their place."""
    self._pools = pools

  def _fresh_pools(self) -> Pools:
    """Pools of zeros, of the size that the budget says."""
    budget = self.store.index.budget
    return allocate(
      self.model, slots=budget.slots or 0, pages=budget.pages or 0
    )

  @property
  def limits(self) -> Limits:
    """What a prompt may be."""
    config, numerics = self.config, self.config.numerics
    return Limits(config.vocab_size, numerics.max_length, numerics.chunk)

  @property
  def sequences(self) -> tuple[SequenceHandle, ...]:
    """Handles of all running sequences, oldest first."""
    return tuple(running.handle for running in self.store.running)

  def stats(self) -> StoreStats:
    """What is held now, and what requests found so far."""
    with self._lock.held():
      return self.store.stats()

  def check_model(self, model: HybridDecoder) -> None:
    """States of one model mean nothing to another.

    Parameters that are the same arrays pass at once; others are hashed, and
    take the place of those that the cache held.

    Raises:
      ValueError: If configuration or weights are not those of this cache.
    """
    with self._lock.held():  # No other weights are given meanwhile.
      self._served = hold_equal(model, self._served)

  def replace_weights(self, model: HybridDecoder) -> None:
    """Serves other weights of the same configuration from here on.

    What was stored or running belongs to the old weights and is gone; the
    pools stay, and no program is compiled again. Whoever serves from the cache,
    a `Scheduler` or an `Engine`, goes on with the new ones.

    Raises:
      ValueError: If configuration or weights are refused; nothing has changed.
    """
    served = held_model(model)
    check_config(model.config, self.config)
    with self._lock.held():
      self.store.reset("the weights of its cache were replaced")
      self._served = served
      self.replaced += 1

  @contextlib.contextmanager
  def call(self) -> Iterator[list[Running]]:
    """One call: alone, signals held, its own sequences closed if it raises.

    Yields:
      A list for the sequences that the call began or is changing.
    """
    mine: list[Running] = []
    try:
      with self._lock.held():
        check_not_traced(self.frozen.leaves[0])
        try:
          yield mine
          self._lock.deliver()
        except BaseException:
          self._end(mine)
          mine.clear()
          raise
    except BaseException:
      if mine:  # A signal came while the lock was given back.
        with self._lock.held():
          self._end(mine)
      raise

  def _end(self, mine: Sequence[Running]) -> None:
    """Closes the sequences of a call; all, if a program took the pools."""
    if self._pools is not None and are_lost(self._pools):
      self._pools = None
      self.store.reset("a program failed that held the pools of its cache")
      return
    running = self.store.running
    for sequence in mine:
      if sequence in running:
        self.store.drop(sequence, "its call was interrupted or failed")

  def await_move(self) -> None:
    """Before a call: waits for what a move needs; others may call meanwhile."""
    if self._mover:
      self._mover.wait()

  def move_if_due(self) -> None:
    """At the beginning of a call: gives states another share, if one is due."""
    if self._mover:
      self._mover.move_if_due()

  def when_free(self, action: Callable[[], None]) -> None:
    """Runs it now, or at the end of the call that this thread is amid."""
    self._lock.when_free(action)

  def deliver(self) -> None:
    """Runs the handlers of signals that came meanwhile; they may raise."""
    self._lock.deliver()

  @property
  def model(self) -> HybridDecoder:
    """The model whose states it keeps, as it was last given."""
    return self._served.model

  @property
  def frozen(self) -> FrozenModel:
    """The parameters, as programs take them."""
    return self._served.frozen

  def run(
    self, segments: Sequence[Segment], choose: Callable[[Plan], np.ndarray]
  ) -> np.ndarray:
    """Runs segments packed together: what lies between a look and a commit.

    Args:
      segments: Of `store.next_segment`.
      choose: Which rows of the plan to give to the head.

    Returns:
      Float32 logits of those rows. [rows vocab]
    """
    parts = [np.zeros((0, self.config.vocab_size), np.float32)]
    if not segments:
      return parts[0]
    budget = self.store.index.budget
    plan = build_plan(
      self.config, segments, slots=budget.slots or 0, pages=budget.pages or 0
    )
    groups = run_groups(self.frozen, self.pools, plan, choose(plan))
    for number, (pools, logits) in enumerate(groups):
      self.pools = pools
      if number == 0:  # The device computes meanwhile.
        self.store.catch_up()
      parts.append(logits)
      self._lock.deliver()
    return np.concatenate(parts)

  def run_step(self, step: Step, rows: int) -> np.ndarray:
    """One token of up to `decode_rows` sequences.

    Args:
      step: Input of the decode program.
      rows: How many of its rows are sequences.

    Returns:
      Float32 logits. [rows vocab]
    """
    hidden, self.pools = programs.decode_step(self.frozen, self.pools, step)
    return head_rows(self.frozen, hidden, np.arange(rows), hidden.shape[0])

  def release(
    self, sequences: Iterable[SequenceHandle], *, keep: int | None = None
  ) -> None:
    """Ends sequences: stores what is canonical of them and frees the rest.

    Args:
      sequences: Handles, each once.
      keep: Tokens from the start to store of each, floored to the lattice for
        states, keys and values; None for all, 0 for none. So an answer whose
        thinking the next turn does not repeat can be left out.

    Raises:
      ValueError: If a handle is not running or named twice, or `keep` is
        negative or more than its tokens; nothing has changed then.
    """
    with self._lock.held():
      running = self.find_all(sequences)
      for one in running:
        one.kept_tokens(keep)
      for one in running:
        self.store.close(one, keep)

  def find_all(self, sequences: Iterable[SequenceHandle]) -> list[Running]:
    """The sequences of handles, each once.

    Raises:
      ValueError: If they are no handles, not running, or one is named twice.
    """
    handles = listed(sequences)
    if handles is None:
      raise ValueError(
        f"sequences must be a list of handles, got {brief(sequences)}."
      )
    running = [self.store.find(handle) for handle in handles]
    if len({one.number for one in running}) != len(running):
      raise ValueError("sequences: one is named twice.")
    return running

  def fork(self, sequence: SequenceHandle) -> SequenceHandle:
    """A second sequence with the same past, to be continued differently.

    Copies the running slot, the lattice slot of its own and the running page;
    shares the rest.

    Raises:
      ValueError: If the handle is not running.
      CapacityError: If there is no room; nothing has changed then.
    """
    with self.call() as mine:
      twin, copies = self.store.fork(self.store.find(sequence))
      mine.append(twin)
      self._copy(copies)
      return twin.handle

  def _copy(self, copies: Copies) -> None:
    """Copies slots and a page bit by bit."""
    source, target = (np.array(slots, np.int32) for slots in copies.slots)
    page = tuple(map(np.int32, copies.page or (0, 0)))
    self.pools = copy_sequence(self.pools, (source, target), page)

  def flush(self) -> None:
    """Forgets everything stored; running sequences go on."""
    with self._lock.held():
      self.store.flush()

  def audit(self) -> None:
    """Recomputes every count of the store; for tests, O(everything).

    Raises:
      AssertionError: One sentence on the first thing that does not add up.
    """
    with self._lock.held():
      self.store.audit()

  def _refuse_copy(self, *_: object) -> NoReturn:
    """Refuses copies and pickles: two caches would write the same pools.

    Raises:
      TypeError: Always.
    """
    raise TypeError(
      "a PrefixCache cannot be copied: it owns device arrays that its programs "
      "overwrite; make a new one."
    )

  __copy__ = __deepcopy__ = __reduce__ = _refuse_copy
