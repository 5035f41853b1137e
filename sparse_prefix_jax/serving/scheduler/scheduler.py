"""Scheduler: many requests share one model, and none of them can tell.

What a step does is in `stepper.py`. There is no clock and no thread: the same
calls give the same events.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.byte_sizes import parse_bytes
from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.cache.running import TokenBuffer
from sparse_prefix_jax.kinds import brief, check_class, check_flag
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.serving.checks import check_cache
from sparse_prefix_jax.serving.scheduler.asked import (
  Asked,
  QueueFullError,
  checked_stop_tokens,
)
from sparse_prefix_jax.serving.scheduler.device_sampler import DeviceSampler
from sparse_prefix_jax.serving.scheduler.events import (
  Ending,
  Event,
  RequestHandle,
)
from sparse_prefix_jax.serving.scheduler.life import Life
from sparse_prefix_jax.serving.scheduler.sampler import Sampler
from sparse_prefix_jax.serving.scheduler.stepper import Stepper
from sparse_prefix_jax.serving.scheduler.watched_model import WatchedModel
from sparse_prefix_jax.whole_numbers import check_at_least

# Each has a place in arrays of the device, whether or not somebody sits there.
_SEATS, _MOST_SEATS = 64, 1 << 16


class Scheduler:
  """Serves requests step by step, with the bits of each alone.

  A step computes one token of every running request, and prompts up to a budget
  of tokens; a prompt that is cut goes on in the next step. Requests begin by
  priority, then by arrival. Out of room, the last one in that order makes room,
  and so it does for who waits with a higher priority: its
  sequence is copied to the host and back, or dropped and replayed. Whatever
  happens, ids and logits are those of the request alone in an empty cache, and
  what is stored has the bits of a cold prefill.

  A step is dispatched before the ids of the one before it are read, so the
  device does not wait for the host. What a request computed after an id that
  turns out to end it is discarded.

  Args:
    model: The model of the cache.
    cache: Where sequences run and prefixes are stored.
    token_budget: Most tokens of prompts per step, floored to whole chunks.
    max_running: Most requests that run at once; None for 64.
    max_waiting: Most requests that wait besides those that may run at once;
      more are refused. None for any number.
    sampler: Chooses ids; None for one that takes a `Sampling`, or None for the
      most probable ids, or a pair of one and the number of a sample.
    swap_capacity: Bytes of the host for sequences that make room, a number or a
      size such as "1GiB"; what does not fit is dropped and replayed, and so is
      everything with None or 0.
    overlap: Whether a step is dispatched before the last ids are read. Without,
      ids are told by the step that chose them.

  Raises:
    ValueError: If an argument is out of range, or the model is not the cache's.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, PrefixCache, preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> scheduler = Scheduler(model, PrefixCache(model, capacity="4MiB"))
    >>> handle = scheduler.submit([1, 2, 3], max_tokens=2)
    >>> while not scheduler.idle:
    ...   print([type(event).__name__ for event in scheduler.step()])
    ['Started']
    ['TokenEvent']
    ['TokenEvent', 'Finished']
  """

  def __init__(
    self,
    model: HybridDecoder,
    cache: PrefixCache,
    *,
    token_budget: int = 512,
    max_running: int | None = None,
    max_waiting: int | None = None,
    sampler: Sampler | None = None,
    swap_capacity: int | str | None = "1GiB",
    overlap: bool = True,
  ) -> None:
    """Serves nobody yet; see the class."""
    check_cache(cache)
    self._watched = WatchedModel(model, cache)
    seats = _SEATS
    if max_running is not None:
      seats = check_at_least("max_running", max_running, 1, _MOST_SEATS)
    budget = check_at_least("token_budget", token_budget, cache.store.chunk)
    waiting = None
    if max_waiting is not None:
      waiting = check_at_least("max_waiting", max_waiting, 0)
    swap_bytes = 0
    if swap_capacity is not None:
      swap_bytes = parse_bytes(swap_capacity, name="swap_capacity", least=0)
    check_flag("overlap", overlap)
    self._cache, self._seats, self._most = cache, seats, waiting
    with cache.call():  # Places for ids are made on the device.
      if sampler is None:
        sampler = DeviceSampler(cache.config, seats)
      if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler is {brief(sampler)}; it must be a Sampler.")
      self._stepper = Stepper(
        self._watched,
        cache,
        sampler,
        seats=seats,
        chunks=budget // cache.store.chunk,
        swap_bytes=swap_bytes,
        overlap=overlap,
      )
    self._sampler, self._submitted = sampler, 0

  @property
  def steps(self) -> int:
    """How many steps were begun."""
    return self._stepper.number

  @property
  def idle(self) -> bool:
    """Whether every request is finished and every event was told."""
    return not (self._stepper.busy or self._stepper.events)

  @property
  def active(self) -> bool:
    """Whether a request has begun and goes on; others may wait for room."""
    return self._stepper.line.active

  def check_places(self, count: int = 1) -> None:
    """Refuses requests that would have to wait and may not.

    Args:
      count: How many would come.

    Raises:
      QueueFullError: If so many find no place now.
      ValueError: If `count` is no integer of at least 1.
    """
    count, line = check_at_least("count", count, 1), self._stepper.line
    here = len(line.running) + len(line.waiting)
    if self._most is not None and here + count > self._seats + self._most:
      raise QueueFullError(
        f"{here} requests run or wait, and {brief(count)} more find no place: "
        f"max_running is {self._seats} and max_waiting is {self._most}."
      )

  @property
  def counts(self) -> Mapping[str, int]:
    """How often something happened, over the life of the scheduler.

    `swapped_out` and `dropped` requests made room, `preempted` ones for a
    higher priority; `forked` ones went on from a copy; `discarded` tokens were
    computed after the end; `sat_out_judged` and `sat_out_no_room` are steps
    that a running request could not take part in; `waited_for_a_prefix` are
    steps in which one waited for another.
    """
    return self._stepper.line.counts

  def most_tokens(self, prompt: int) -> int:
    """How many ids a request may ask for, if it were alone.

    Args:
      prompt: Tokens of its prompt.

    Returns:
      At least 1, also where the prompt itself does not fit: `submit` says so.
    """
    cache = self._cache
    # A running slot and one on the lattice, besides the pages.
    pages = cache.store.index.budget.most_pages(2)
    longest = min(cache.limits.max_length, pages * cache.store.chunk)
    # The last id is told and never computed with.
    return max(1, longest - check_at_least("prompt", prompt, 0) + 1)

  def submit(
    self,
    prompt: at.Tokens,
    *,
    sampling: object = None,
    max_tokens: int = 16,
    salt: str | bytes = "",
    priority: int = 0,
    deadline: int | None = None,
    anchors: Sequence[int] = (),
    stop_tokens: Collection[int] = (),
    judged: bool = False,
    held: bool = False,
    keep_logits: bool = False,
  ) -> RequestHandle:
    """Lets a request wait for its first step.

    Args:
      prompt: Token ids, at least one.
      sampling: What the sampler takes.
      max_tokens: Most ids to choose, at least one.
      salt: Requests with different salts share nothing.
      priority: Larger ones come first, with the room of smaller ones that run.
      deadline: The last step that may serve it, as `steps` counts; None for no
        last one.
      anchors: Positions of the prompt worth a state, as `prefill` takes them.
      stop_tokens: Ids that end it; the one that does is told.
      judged: Whether the caller sees every id before the next token is
        computed, as stop strings and masks made on the host need it: with
        `overlap` the request takes part in every other step only.
      held: Whether its sequence stays open once it has ended, for the caller to
        say by `cancel` how much of it is stored. Where room is short only its
        prompt is.
      keep_logits: Whether events carry the logits.

    Returns:
      Its handle.

    Raises:
      ValueError: If an argument is out of range.
      CapacityError: If prompt and longest answer do not fit alone, or
        (`QueueFullError`) too many wait. Nothing has changed then.
    """
    judges = self._sampler.check(sampling)
    asked = Asked(
      sampling=sampling,
      max_tokens=max_tokens,
      salt=salt,
      priority=priority,
      deadline=deadline,
      anchors=anchors,
      stop_tokens=checked_stop_tokens(
        stop_tokens, self._cache.config.vocab_size
      ),
      judged=judges if judged is False else judged,
      held=held,
      keep_logits=keep_logits,
    )
    with self._call():
      self._watched.check()
      self.check_places()
      request = asked.request(prompt, self._cache)
      handle = RequestHandle(self._submitted)
      ids = TokenBuffer(request.ids)
      life = Life(handle, asked, request, request.length, ids)
      self._submitted += 1
      self._stepper.enter(life)
      return handle

  def warm_up(self, samplings: Sequence[object] = (None,)) -> Iterator[str]:
    """Compiles what steps run, while it is iterated; nothing is stored.

    Args:
      samplings: What the sampler takes, a way of sampling each.

    Yields:
      What is compiled next.

    Raises:
      ValueError: If requests run or wait, at first or later: their seats are
        tried in. Or if a way of sampling cannot be meant.
    """
    stages = self._stepper.warm_up(samplings)
    while True:
      with self._call():
        if not self.idle or self._stepper.lives:
          raise ValueError("requests run or wait; warm a scheduler up before.")
        stage = next(stages, None)
      if stage is None:
        return
      yield stage

  def cancel(self, handle: RequestHandle, *, keep: int | None = None) -> None:
    """Ends a request between two steps; the next step tells that it has ended.

    Args:
      handle: Of a request that is not finished.
      keep: Tokens from the start to store, as `PrefixCache.release` takes them;
        None for all that were told.

    Raises:
      ValueError: If the handle is unknown or its request finished, or `keep` is
        negative or more than the tokens that were told; nothing has changed
        then.
    """
    with self._call():
      life = self._find(handle)
      if keep is not None and check_at_least("keep", keep, 0) > life.known:
        raise ValueError(
          f"keep is {brief(keep)}; it must be 0 to the {life.known} tokens of "
          f"{handle}."
        )
      self._stepper.end(life, Ending.CANCELLED, keep)

  def end(self, handle: RequestHandle) -> None:
    """A held request chooses no more, as after a stop token.

    One that waits for room gives up what it holds; of one that runs the caller
    says by `cancel` how much is stored.

    Args:
      handle: Of a request that is `held`.

    Raises:
      ValueError: If the handle is unknown, or its request is not held.
    """
    with self._call():
      life = self._find(handle)
      if not life.asked.held:
        raise ValueError(f"{handle} is not held; cancel it.")
      if not life.over:
        self._stepper.over(life, Ending.STOP)

  def fork(
    self, handle: RequestHandle, *, sampling: object = None
  ) -> RequestHandle:
    """A request goes on twice, with what it has chosen so far.

    Whole chunks are shared and the rest is copied; where there is no room for
    that, the second one waits, and its past is computed again.

    Args:
      handle: Of a request that is not finished.
      sampling: How the second one chooses from here on.

    Returns:
      The handle of the second one.

    Raises:
      ValueError: If the handle is unknown or its request is over; ids that
        were not told yet may have ended it.
    """
    judges = self._sampler.check(sampling)
    with self._call():
      life = self._find(handle)
      other = RequestHandle(self._submitted)

      def twin() -> Life:
        return life.twin(other, sampling, judged=judges)

      if not self._stepper.fork(life, twin):
        raise ValueError(f"{handle} is over; it chooses no more.")
      self._submitted += 1
      return other

  def step(self) -> tuple[Event, ...]:
    """One token of every running request, and some of the prompts.

    With other weights than the cache's all requests fail, and are told why.

    Returns:
      What happened since the last step, in order.

    Raises:
      Exception: What a program or a plan raised. It ends the requests that it
        was computing, and nobody else; a signal's handler that raises ends
        nobody. Events that were not returned are those of the next step.
    """
    events: tuple[Event, ...] = ()
    self._cache.await_move()
    try:
      with self._call():
        self._stepper.run()
        events = self._stepper.told()
        return events
    except BaseException:
      with self._cache.call():
        self._stepper.events[:0] = events
      raise

  @contextlib.contextmanager
  def _call(self) -> Iterator[None]:
    """A call of the cache; whoever it ended by an exception is finished."""
    try:
      with self._cache.call() as mine:
        self._stepper.mine = mine
        self._stepper.forget_lost()  # To others, since the last call.
        yield
      self._stepper.made.clear()
    except BaseException:
      with self._cache.call():
        self._stepper.undo()
        self._stepper.forget_lost()
      raise

  def _find(self, handle: RequestHandle) -> Life:
    """The request of a handle."""
    check_class("handle", handle, RequestHandle, "of `submit`")
    life = self._stepper.lives.get(handle.number)
    if life is None or life.handle is not handle:
      raise ValueError(f"{handle} is finished, or another scheduler's.")
    return life
