"""Looks for a layer that breaks the contract, and names the rule.

Every kind of branch is run alone: chunk by chunk, then packed with another
request, in both orders and on every rung, with few captures, with other padding
and with free slots and pages of NaN, with fewer tokens, and in other slots and
pages, of which there are more; then two steps, alone and together, in every
row. What differs in a bit is a finding.
A model without one lives a few random lives of a cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from sparse_prefix_jax.contract.bits import differing_bits
from sparse_prefix_jax.contract.cold_runs import ColdRuns
from sparse_prefix_jax.contract.schedule import Schedule
from sparse_prefix_jax.contract.trial import Ran, Trial
from sparse_prefix_jax.layers import BranchPools
from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.layers.undivided import check_undivided
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes

_FIRST, _SECOND = [(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1)]
_CHUNKS = 5


class Finding(NamedTuple):
  """A rule that a layer breaks.

  Attributes:
    branch: Number of the first branch of its kind; None for the whole model.
    kind: What its sublayer calls itself.
    rule: What does not hold.
    bits: How many bits differ.
  """

  branch: int | None
  kind: str
  rule: str
  bits: int


ROWS = (
  "the bits of a chunk depend on what it is packed with, or on how many chunks "
  "a program has: narrow products, norms of heads, softmax and routing go "
  "through map_rows, wide products through dense"
)
PADDING = (
  "padding, or what a free slot or page holds, reaches real tokens: it is "
  "selected away, not multiplied by zero"
)
CAUSAL = "what a token gives depends on the tokens behind it in its chunk"
READS = (
  "a chunk does not go on from the slot that it reads, or from the chunk "
  "before it where that is not captured"
)
NUMBERS = (
  "the bits depend on which slots, pages or row of the page table a request "
  "has, or on how many there are"
)
FREE = "a slot or a page changes that nobody writes"
LEFT = (
  "something is left of what the slot or the page of a token held before its "
  "step, which has to write all of the state"
)
STEPS = "the bits of a step depend on its row, or on what other rows hold"
LIVES = "a random life of a cache gives other bits than cold runs"


def check(
  model: HybridDecoder, *, seed: int = 0, lives: int = 2
) -> tuple[Finding, ...]:
  """Finds layers that break the contract; none were found if it is empty.

  Closeness to a reference does not show a lost bit: this compares bits, with
  the numerics of the model. Try bfloat16 and every ladder that is served.

  Args:
    model: Any model; its layers may be of one's own.
    seed: Of the inputs.
    lives: Random lives of a cache that are tried where no layer is found.

  Returns:
    What was found, branch by branch.

  Raises:
    ValueError: If it is no model, or a number is not a whole one >= 0.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny", ladder=(4,)), rngs=nnx.Rngs(0))
    >>> check(model, lives=0)
    ()
  """
  if not isinstance(model, HybridDecoder):
    raise ValueError(
      f"model must be a HybridDecoder, got {type(model).__name__}"
    )
  for name, number in (("seed", seed), ("lives", lives)):
    if not is_int(number) or not 0 <= number < 2**32:
      raise ValueError(
        f"{name} must be a whole number in [0, 2**32), got {number!r}"
      )
  check_undivided(jax.tree.leaves(model))
  found, seen = [], set()
  for index, branch in enumerate(model.branches):
    sub = branch.config.sub
    if sub not in seen:
      seen.add(sub)
      trial = Trial(branch.sub, model.config, sub, seed)
      for rule, bits in _broken(trial, model.config.numerics.ladder):
        found.append(Finding(index, sub.kind, rule, bits))
  if found:
    return tuple(found)
  bits = _lived(model, seed, lives)
  return (Finding(None, "model", LIVES, bits),) if bits else ()


def _broken(trial: Trial, ladder: tuple[int, ...]) -> Iterator[tuple[str, int]]:
  """The rules that one layer breaks, and how many bits show it."""
  alone = [[place] for place in (*_FIRST, *_SECOND)]
  expected = trial.run(ladder[0], alone)
  orders = _FIRST + _SECOND, _SECOND + _FIRST
  packed = [
    trial.run(rung, [order[i : i + rung] for i in range(0, _CHUNKS, rung)])
    for rung in ladder
    for order in orders
  ]
  rows = sum(_differing(expected, ran) for ran in packed)
  if rows:
    yield ROWS, rows
  littered = trial.run(ladder[0], alone, littered=True)
  padding = _differing(expected, littered)
  if padding:
    yield PADDING, padding
  elif ahead := _ahead(trial, ladder[0], expected):
    # What padding reaches is reached by fewer tokens, too.
    yield CAUSAL, ahead
  numbers = _by_numbers(trial, ladder[0], expected)
  if numbers:
    yield NUMBERS, numbers
  elif not rows and (reads := _sparsely(trial, ladder[-1], expected)):
    yield READS, reads
  steps, strayed = _stepping(trial, littered)
  # On the highest rung some chunks of a program hold nothing.
  crowded = trial.run(ladder[-1], alone, littered=True)
  free = trial.changed(crowded.pools) + strayed
  if free:
    yield FREE, free
  elif not padding and (left := _left(trial, expected, littered)):
    # What is written elsewhere is not where it belongs, either.
    yield LEFT, left
  if steps:
    yield STEPS, steps


def _ahead(trial: Trial, rung: int, expected: Ran) -> int:
  """Bits of tokens that change where the tokens behind them are left out."""
  ran = trial.cut().run(rung, [[place] for place in (*_FIRST, _SECOND[0])])
  return sum(
    differing_bits(expected.outs[place][: out.shape[0]], out)
    for place, out in ran.outs.items()
  )


def _sparsely(trial: Trial, rung: int, expected: Ran) -> int:
  """Bits of outputs that change with few captures, read amid a program."""
  heads, rest = [_FIRST[0], _SECOND[0]], [*_FIRST[1:], *_SECOND[1:]]
  groups = [
    part[i : i + rung] for part in (heads, rest) for i in range(0, 3, rung)
  ]
  ran = trial.run(rung, [group for group in groups if group], sparse=True)
  return _tree_bits(expected.outs, ran.outs)


def _by_numbers(trial: Trial, rung: int, expected: Ran) -> int:
  """Bits of a run, and of a step from it, that change in other slots."""
  other = trial.renumbered()
  ran = other.run(rung, [[place] for place in (*_FIRST, *_SECOND)])
  stepped = [
    _tree_bits(
      trial.step(expected.pools, {0: request}).made,
      other.step(ran.pools, {0: request}).made,
    )
    for request in (0, 1)
  ]
  return _differing(expected, ran) + sum(stepped)


def _left(trial: Trial, clean: Ran, littered: Ran) -> int:
  """Bits of two steps that depend on what free slots and pages held."""

  def seen(pools: BranchPools, again: bool) -> Any:
    made = [trial.step(pools, {0: r}, again=again).made[r] for r in (0, 1)]
    return [(y, kept.slots) for y, kept in made]

  def both(ran: Ran) -> Any:
    after = trial.step(ran.pools, {0: 0, 1: 1}).pools
    return seen(ran.pools, False), seen(after, True)

  return _tree_bits(both(clean), both(littered))


def _stepping(trial: Trial, ran: Ran) -> tuple[int, int]:
  """Tries two steps of both requests, alone and together, in every row.

  Returns:
    Bits that differ from those of a request alone in the first row, and bits
    that change where a step has nothing to write.
  """
  requests = 0, 1
  alone = [trial.step(ran.pools, {0: request}) for request in requests]
  after = trial.step(ran.pools, dict(enumerate(requests)))
  again = [
    trial.step(after.pools, {0: request}, again=True) for request in requests
  ]
  size = trial.numerics.decode_rows
  places = [{row: request} for row in range(size) for request in requests]
  if size > 1:
    places += [{row: 0, (row + 1) % size: 1} for row in range(size)]
  differing = strayed = 0
  for rows in places:
    for littered in (False, True):
      for pools, expected in ((ran.pools, alone), (after.pools, again)):
        stepped = trial.step(
          pools, rows, again=expected is again, littered=littered
        )
        differing += sum(
          _tree_bits(expected[request].made[request], made)
          for request, made in stepped.made.items()
        )
        strayed += trial.written(pools, stepped.pools)
  return differing, strayed


def _differing(expected: Ran, ran: Ran) -> int:
  """Bits of outputs, states and whole pages that two runs have apart."""
  outs = sum(
    differing_bits(expected.outs[place], ran.outs[place])
    for place in expected.outs
  )
  return outs + _tree_bits(expected.kept, ran.kept)


def _tree_bits(x: Any, y: Any) -> int:
  """Differing bits of all arrays of two trees."""
  pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  return sum(differing_bits(one, other) for one, other in pairs)


def _lived(model: HybridDecoder, seed: int, lives: int) -> int:
  """Bits that differ in random lives of a cache, if it can have one."""
  if not state_bytes(model.config) and not page_bytes(model.config):
    return 0
  numerics = model.config.numerics
  longest = min(numerics.max_length, 5 * numerics.chunk)
  cold = ColdRuns(model, longest)
  return sum(
    Schedule(cold, seed + life, longest=longest).run() for life in range(lives)
  )
