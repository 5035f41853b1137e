"""Random traffic through a scheduler, compared with each request alone.

Prompts that share prefixes arrive at random steps, with priorities, deadlines
and stop tokens; room is scarce, so that sequences are swapped out and replayed;
some are cancelled. Before every step all free slots and pages are filled with
NaN. Ids are drawn at temperature 1 by a seed, so that one wrong bit leads
somewhere else.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.cache.prefix_cache import PrefixCache
from sparse_prefix_jax.contract.bits import (
  ContractError,
  differing_bits,
  poison,
)
from sparse_prefix_jax.contract.cold_runs import ColdRuns
from sparse_prefix_jax.contract.stored import compare_stored
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.placement import SHARED, PlacementPolicy
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.scheduler import (
  DeviceSampler,
  Ending,
  Finished,
  RequestHandle,
  SampleRows,
  Scheduler,
  Started,
  TokenEvent,
)

_Choice = TypeVar("_Choice")
Seeds: TypeAlias = tuple[tuple[int, int], ...]
"""From which token of an answer on which seed draws: forks change it."""

_POLICIES = ("last", "no_cache", "sqrt", "balanced", "block", "adaptive")


def drawn_by(seed: int) -> Sampling:
  """The choice of a request that draws by a seed, at temperature 1.

  Args:
    seed: Of the request.
  """
  return Sampling(temperature=1.0, seed=seed)


class AnswerToken(NamedTuple):
  """A token of an answer, of the request alone.

  Attributes:
    logits: Float32 that its id is drawn from. [vocab]
    id: The id.
  """

  logits: np.ndarray
  id: int


class Answers:
  """What requests answer alone in an empty cache, each computed once.

  Args:
    cold: Cold runs of the model.
    seed: Of the prompts.
    longest: Longest prompt and answer together, in tokens.
  """

  def __init__(self, cold: ColdRuns, seed: int, longest: int) -> None:
    """Draws the prompts: documents, cut and continued."""
    random, chunk = (
      np.random.default_rng(seed),
      cold.model.config.numerics.chunk,
    )
    vocab = cold.model.config.vocab_size
    self.cold, self.longest = cold, longest
    documents = random.integers(0, vocab, (2, longest)).astype(np.int32)
    self.prompts: list[np.ndarray] = []
    most = longest * 5 // 8
    for i in range(12):
      near = chunk * random.integers(0, most // chunk) + random.integers(-1, 3)
      cut = (
        int(np.clip(near, 1, most)) if i % 3 else int(random.integers(1, most))
      )
      tail = random.integers(0, vocab, random.integers(0, chunk))
      prompt = np.concatenate([documents[i % 2][:cut], tail])[:most]
      self.prompts.append(prompt.astype(np.int32))
    self._steps: dict[tuple[int, Seeds], list[AnswerToken]] = {}

  def of(self, prompt: int, seeds: Seeds, size: int) -> list[AnswerToken]:
    """The first tokens of an answer.

    Args:
      prompt: Its number.
      seeds: Of the ids.
      size: How many tokens.
    """
    steps = self._steps.setdefault((prompt, seeds), [])
    numerics = self.cold.model.config.numerics
    while len(steps) < size:
      tokens = self.prompts[prompt]
      answer = np.array([step.id for step in steps], np.int32)
      size_of_head = numerics.decode_rows if steps else numerics.head_rows
      if not steps:
        logits = self.cold.prefill(tokens).logits[-1]
      else:
        past = np.concatenate([tokens, answer])
        logits = self.cold.decode(past, tokens.size)
      seed = [seed for start, seed in seeds if start <= len(steps)][-1]
      position = tokens.size + len(steps)
      drawn = self._draw(logits, seed, position, size_of_head)
      steps.append(AnswerToken(logits, drawn))
    return steps[:size]

  def _draw(
    self, logits: np.ndarray, seed: int, position: int, size: int
  ) -> int:
    """The id that the sampler draws, in the first of its rows."""
    config = self.cold.model.config
    sampler, none = DeviceSampler(config, 1), np.zeros(0, np.int32)
    sampler.begin(0, drawn_by(seed), none, none)
    where = np.full(size, position, np.int32)
    rows = SampleRows(np.minimum(np.arange(size, dtype=np.int32), 1), where)
    same = jnp.asarray(np.repeat(logits[None], size, axis=0))
    return int(sampler.sample(same, rows).ids[0])


@dataclasses.dataclass
class _Asked:
  """A request of the traffic, and how far it came."""

  prompt: int
  seeds: Seeds
  arrival: int
  fields: dict[str, Any]
  cancel_at: int
  fork_at: int
  fork_seed: int | None = None
  handle: RequestHandle | None = None
  told: int = 0
  ended: Ending | None = None


class Traffic:
  """One random stream of requests; `run` gives the number of differing bits.

  Attributes:
    compared: Bytes compared so far.
    scheduler: What serves.

  Args:
    answers: Of the requests alone; shared by streams of one model.
    draw: Gives an integer from the first to the second, both included.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import HybridDecoder, preset
    >>> fields = {"chunk": 16, "ladder": (4,), "max_length": 256}
    >>> model = HybridDecoder(preset("tiny", **fields), rngs=nnx.Rngs(0))
    >>> answers = Answers(ColdRuns(model, 128), seed=0, longest=128)
    >>> Traffic(answers, lambda low, high: low).run()
    0
  """

  def __init__(self, answers: Answers, draw: Callable[[int, int], int]) -> None:
    """Draws the cache, the scheduler and the requests."""
    self._answers, self._draw = answers, draw
    self._chunk = answers.cold.model.config.numerics.chunk
    self.cache = self._new_cache()
    self.scheduler = Scheduler(
      answers.cold.model,
      self.cache,
      token_budget=self._chunk * draw(1, 4),
      max_running=draw(1, 6),
      swap_capacity=self._pick((None, self._sequence_bytes(), "1GiB")),
      overlap=draw(0, 3) > 0,
    )
    self._asked = [self._new_request() for _ in range(draw(2, 9))]
    self.compared = 0

  def run(self) -> int:
    """Serves everything, then compares what is stored.

    Returns:
      Differing bits in logits, states, keys and values; 0 is the contract.

    Raises:
      ContractError: If an id is another one, a request ends otherwise than it
        should, or something is leaked.
    """
    bits = 0
    for step in range(2000):
      if step and self.scheduler.idle and all(x.handle for x in self._asked):
        break
      self._arrive_and_leave(step)
      poison(self.cache)
      for event in self.scheduler.step():
        bits += self._check(event)
      self.cache.audit()
    self._check_ends()
    found = compare_stored(self.cache, self._answers.cold)
    self.compared += found.size
    return bits + found.bits

  def _pick(self, choices: Sequence[_Choice]) -> _Choice:
    return choices[self._draw(0, len(choices) - 1)]

  def _sequence_bytes(self) -> int:
    """Of one sequence in the host, with a few pages."""
    config = self._answers.cold.model.config
    return 2 * state_bytes(config) + 4 * page_bytes(config)

  def _new_cache(self) -> PrefixCache:
    """Of one size, of which a part is allowed: programs are shared."""
    draw, chunk = self._draw, self._chunk
    name = str(self._pick(_POLICIES))
    budget = {"balanced": 2, "block": chunk}.get(name)
    policy = PlacementPolicy(name, chunk=chunk, budget=budget)
    queue = None if name in SHARED else str(self._pick(("lru", "fifo")))
    cache = self._answers.cold.cache(policy, queue)
    index, longest = cache.store.index, -(-self._answers.longest // chunk)
    slots, pages = index.budget.slots or 0, index.budget.pages or 0
    smaller = dataclasses.replace(
      index.budget,
      slots=min(slots, draw(4, 16)),
      pages=min(pages, longest + draw(0, 8)),
    )
    index.set_budget(smaller)
    return cache

  def _new_request(self) -> _Asked:
    draw, answers = self._draw, self._answers
    prompt, seeds = draw(0, len(answers.prompts) - 1), ((0, draw(0, 1)),)
    length = answers.prompts[prompt].size
    most = draw(1, min(answers.longest - length, 4 * self._chunk))
    stops: list[int] = []
    if draw(0, 2) == 0:
      at = draw(0, most - 1)
      stops = [answers.of(prompt, seeds, at + 1)[at].id]
    return _Asked(
      prompt=prompt,
      seeds=seeds,
      arrival=draw(0, 16),
      cancel_at=draw(1, 60) if draw(0, 4) == 0 else -1,
      fork_at=draw(1, 50) if draw(0, 4) == 0 else -1,
      fields={
        "max_tokens": most,
        "stop_tokens": stops,
        "priority": draw(0, 2),
        "deadline": draw(1, 60) if draw(0, 7) == 0 else None,
        "judged": draw(0, 3) == 0,
        "anchors": [length] if draw(0, 2) == 0 else [],
      },
    )

  def _arrive_and_leave(self, step: int) -> None:
    """Submits and cancels what is due."""
    for one in [*self._asked]:
      if one.handle and one.ended is None and 0 <= one.fork_at <= step:
        self._fork(one)
      if one.handle is None and one.arrival <= step:
        one.handle = self.scheduler.submit(
          self._answers.prompts[one.prompt],
          sampling=drawn_by(one.seeds[0][1]),
          keep_logits=True,
          **one.fields,
        )
      elif one.handle and one.ended is None and 0 <= one.cancel_at <= step:
        known = self._answers.prompts[one.prompt].size + one.told
        keep = self._draw(0, known) if self._draw(0, 1) else None
        self.scheduler.cancel(one.handle, keep=keep)
        one.cancel_at = -1

  def _fork(self, one: _Asked) -> None:
    """A request goes on twice, with another seed; or is over by now."""
    assert one.handle is not None
    one.fork_at, seed = -1, 2
    try:
      handle = self.scheduler.fork(one.handle, sampling=drawn_by(seed))
    except ValueError:
      return
    twin = dataclasses.replace(one, handle=handle, fork_seed=seed, told=0)
    self._asked.append(twin)

  def _check(self, event: Started | TokenEvent | Finished) -> int:
    """Differing bits of an event."""
    one = next(x for x in self._asked if x.handle == event.handle)
    if isinstance(event, Finished):
      one.ended = event.why
    if not isinstance(event, TokenEvent):
      return 0
    if one.fork_seed is not None:  # Its past is its source's up to here.
      one.told = event.position - self._answers.prompts[one.prompt].size
      one.seeds, one.fork_seed = (*one.seeds, (one.told, one.fork_seed)), None
    expected = self._answers.of(one.prompt, one.seeds, one.told + 1)[one.told]
    one.told += 1
    assert event.logits is not None
    bits = differing_bits(event.logits, expected.logits)
    self.compared += event.logits.nbytes
    if event.id != expected.id and not bits:
      raise ContractError(f"id {event.id} was told, not {expected.id}.")
    return bits

  def _check_ends(self) -> None:
    """Everybody ended for a reason, and nothing is held."""
    for one in self._asked:
      most, stops = one.fields["max_tokens"], one.fields["stop_tokens"]
      answer = self._answers.of(one.prompt, one.seeds, one.told)
      stopped = bool(answer) and answer[-1].id in stops
      length = one.told == most and not stopped
      deadline = one.fields["deadline"] is not None
      right = {Ending.STOP: stopped, Ending.LENGTH: length}
      right |= {Ending.CANCELLED: True, Ending.DEADLINE: deadline}
      wrong = one.ended is None or not right.get(one.ended, False)
      if wrong or any(step.id in stops for step in answer[:-1]):
        raise ContractError(f"a request ended by {one.ended} after {one.told}.")
    held = self.cache.store.index.stats
    if held.leased_slots or held.leased_pages or held.pins:
      raise ContractError("sequences are gone and hold slots or pages.")
