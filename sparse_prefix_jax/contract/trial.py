"""One layer, run alone on two requests in any packing."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.contract.bits import differing_bits, litter_of
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks, Rows
from sparse_prefix_jax.layers import BranchPools, Sublayer, SublayerModule
from sparse_prefix_jax.layers.branch import check_forms
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.runtime.compiling import Program

Place: TypeAlias = tuple[int, int]
"""A chunk: the number of its request, and its own in it."""

# Slots and pages of the chunks of both requests, and free ones: the first and
# the last are what a number that is none reaches by mistake.
_NUMBERS = {(0, 0): 4, (0, 1): 1, (0, 2): 6, (1, 0): 2, (1, 1): 5}
_FREE = 0, 3, 9
_COUNT = 10
# The last chunk of each request, and the slot that its steps write.
_LAST = (0, 2), (1, 1)
_STEPPED = 7, 8
_PAGES_PER_REQUEST = 8

_run_program = Program(lambda layer, *inputs: layer(*inputs))
_step_program = Program(lambda layer, *inputs: layer.step(*inputs))


class Ran(NamedTuple):
  """What a run gives.

  Attributes:
    outs: The outputs of the real tokens of each chunk.
    kept: Slots of all chunks, and pages of whole ones.
    pools: All slots and pages.
  """

  outs: dict[Place, np.ndarray]
  kept: Any
  pools: BranchPools


class Stepped(NamedTuple):
  """What a step gives.

  Attributes:
    made: Output, slot and page of each request that it ran.
    pools: All slots and pages.
  """

  made: dict[int, Any]
  pools: BranchPools


class Trial:
  """A layer with inputs for two requests: 3 chunks and 2, the last ones cut.

  Args:
    module: The layer.
    config: Of the model that it is part of.
    sub: Its own choices.
    seed: Of the inputs.
  """

  def __init__(
    self,
    module: SublayerModule,
    config: ModelConfig,
    sub: Sublayer,
    seed: int,
  ) -> None:
    self.numerics = config.numerics
    self._module, self._width, self._kind = module, config.width, sub.kind
    self._pools = sub.keeps(config.width, config.numerics)
    c = self.numerics.chunk
    self._lengths = 2 * c + c // 3 + 1, c + 1
    self._numbers, self._stepped, self._rows = _NUMBERS, _STEPPED, (0, 1)
    self._count, self._entries = _COUNT, _PAGES_PER_REQUEST
    random = np.random.default_rng(seed)
    self._inputs = [self._random(random, t + 2) for t in self._lengths]
    # Not a number: what is multiplied by zero would not show otherwise.
    self._litter = np.full_like(self._random(random, c), np.nan)

  def cut(self) -> "Trial":
    """The same requests with fewer tokens: 3 chunks and 1, the last ones cut.

    Where a chunk of the one was whole, and where one was cut further behind.
    """
    c = self.numerics.chunk
    trial = copy.copy(self)
    trial._lengths = 2 * c + max(1, c // 6), max(1, c - c // 4 - 1)
    return trial

  def renumbered(self) -> "Trial":
    """The same requests in the same slots and pages, each in another's.

    There are more of both, and the requests have each other's row in a table
    of pages that is wider.
    """
    trial, numbers = copy.copy(self), list(_NUMBERS.values())
    trial._numbers = dict(zip(_NUMBERS, numbers[1:] + numbers[:1], strict=True))
    trial._stepped, trial._rows = _STEPPED[::-1], (1, 0)
    trial._count, trial._entries = _COUNT + 4, 2 * _PAGES_PER_REQUEST
    return trial

  def run(
    self,
    rung: int,
    groups: list[list[Place]],
    *,
    littered: bool = False,
    sparse: bool = False,
  ) -> Ran:
    """Runs chunks in groups, each a call of one program.

    Args:
      rung: How many chunks the program takes; the rest of it is inactive.
      groups: The chunks of each call; those of a request stand in order.
      littered: Whether padding is not zero, and what is free not a number.
      sparse: Whether only that is captured which another call, or nobody, goes
        on from; else every chunk is.
    """
    pools = self._pools.zeros(slots=self._count, pages=self._count)
    if littered:
      pools = jax.tree.map(litter_of, pools)
    outs = {}
    for group in groups:
      x = np.stack([self._chunk(place, littered) for place in group])
      rest = np.stack([self._padding(littered)] * (rung - len(group) + 1))[1:]
      given = jnp.asarray(np.concatenate([x, rest])), pools
      chunks = self._chunks(group, rung, sparse)
      y, pools = self._returned(_run_program, given, chunks, self._table(rung))
      for place, out in zip(group, np.asarray(y), strict=False):
        outs[place] = out[: self._real(place)]
    return Ran(outs, self._kept(pools), pools)

  def step(
    self,
    pools: BranchPools,
    rows: Mapping[int, int],
    *,
    again: bool = False,
    littered: bool = False,
  ) -> Stepped:
    """Runs the next token of requests in rows of one step.

    Args:
      pools: What the step finds; they are not written.
      rows: The request of every row that is active.
      again: Whether this step goes on from the first, in place.
      littered: Whether free rows hold something.
    """
    size = self.numerics.decode_rows
    x = np.zeros((size, self._width), self._litter.dtype)
    if littered:
      x[:] = self._litter[0]
    read, write, position = np.zeros((3, size), np.int32)
    read[:], write[:] = ZERO, NONE
    table = np.zeros((size, self._entries), np.int32)
    for row, request in rows.items():
      length = self._lengths[request]
      x[row] = self._inputs[request][length + again]
      position[row] = length + again
      table[row] = self._table(1)[self._rows[request]]
      write[row] = self._stepped[request]
      read[row] = write[row] if again else self._numbers[_LAST[request]]
    active = np.isin(np.arange(size), list(rows))
    given = jnp.asarray(x), jax.tree.map(jnp.array, pools)
    written = Rows(*map(jnp.asarray, (read, write, position, active)))
    y, pools = self._returned(_step_program, given, written, jnp.asarray(table))
    made = {
      request: (y[row], self._held(pools, request))
      for row, request in rows.items()
    }
    return Stepped(made, pools)

  def changed(self, pools: BranchPools) -> int:
    """How many bits of free slots and pages are no litter any more."""
    return sum(
      differing_bits(pool[number], litter_of(pool[number]))
      for pool in jax.tree.leaves(pools)
      for number in _FREE
    )

  def written(self, before: BranchPools, after: BranchPools) -> int:
    """Bits that a step of all requests changed where it had nothing to write.

    Its own are the slots that steps write, and the pages of its tokens.
    """
    slots = [n for n in range(_COUNT) if n not in self._stepped]
    last = [self._numbers[place] for place in _LAST]
    pages = [n for n in range(_COUNT) if n not in last]
    kept = [
      jax.tree.leaves(
        pools.map(
          lambda pool: pool[np.array(slots)], lambda pool: pool[np.array(pages)]
        )
      )
      for pools in (before, after)
    ]
    return sum(map(differing_bits, *kept))

  def _returned(
    self, program: Program, given: tuple[jax.Array, BranchPools], *others: Any
  ) -> tuple[jax.Array, BranchPools]:
    """Calls the layer; what has another form than it was given is refused."""
    forms = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given
    )
    returned = program(self._module, *given, *others)
    check_forms(self._kind, forms, returned)
    return returned

  def _held(self, pools: BranchPools, request: int) -> Any:
    """The slot that a request's steps write, and the page of its tokens."""
    slot, page = self._stepped[request], self._numbers[_LAST[request]]
    return pools.map(lambda pool: pool[slot], lambda pool: pool[page])

  def _random(self, random: np.random.Generator, size: int) -> np.ndarray:
    """Normal numbers in the type of the activations. [size d]"""
    x = random.normal(size=(size, self._width))
    return np.asarray(jnp.asarray(x, jnp.dtype(self.numerics.dtype)))

  def _real(self, place: Place) -> int:
    """How many real tokens a chunk has."""
    request, number = place
    c = self.numerics.chunk
    return min(c, self._lengths[request] - number * c)

  def _padding(self, littered: bool) -> np.ndarray:
    """What stands in for tokens. [c d]"""
    return self._litter if littered else np.zeros_like(self._litter)

  def _chunk(self, place: Place, littered: bool) -> np.ndarray:
    """The inputs of a chunk, its padding behind them. [c d]"""
    request, number = place
    first, real = number * self.numerics.chunk, self._real(place)
    x = self._padding(littered).copy()
    x[:real] = self._inputs[request][first : first + real]
    return x

  def _chunks(self, group: list[Place], rung: int, sparse: bool) -> Chunks:
    """What each chunk of a call reads, writes and holds."""
    fields = [(ZERO, NONE, 0, 0, 0)] * rung
    for index, (request, number) in enumerate(group):
      before = request, number - 1
      read = self._numbers.get(before, ZERO)
      if index and group[index - 1] == before:
        read = CARRY
      position = number * self.numerics.chunk
      place = request, number
      follows = group[index + 1 : index + 2] == [(request, number + 1)]
      write = NONE if sparse and follows else self._numbers[place]
      row, real = self._rows[request], self._real(place)
      fields[index] = (read, write, real, position, row)
    return Chunks(*jnp.asarray(fields, jnp.int32).T)

  def _kept(self, pools: BranchPools) -> Any:
    """Slots of all chunks, and pages of those that are whole."""
    slots = np.array(list(self._numbers.values()))
    whole = [p for p in self._numbers if self._real(p) == self.numerics.chunk]
    pages = np.array([self._numbers[place] for place in whole])
    kept = pools.map(lambda pool: pool[slots], lambda pool: pool[pages])
    return jax.tree.map(np.asarray, kept)

  def _table(self, rung: int) -> jax.Array:
    """The pages of both requests in order, in the first two rows."""
    table = np.zeros((max(2, rung), self._entries), np.int32)
    for (request, number), page in self._numbers.items():
      table[self._rows[request], number] = page
    return jnp.asarray(table)
