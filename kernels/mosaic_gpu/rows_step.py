"""One token of states whose channels do not mix, on GPU.

The form of `rows.py` for decoding: a carry is a few vectors over channels. A
program takes some channels of one row: its vectors come from the slot, one
element to a thread or a few, and go to a slot advanced. There is nothing to
share, so there is no shared memory.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
  Ref,
  choose,
  launch,
  new,
)

Vectors: TypeAlias = tuple[Array, ...]
"""Vectors over the channels of a program, in the dtype of the pool."""
TokenCell: TypeAlias = Callable[
  [Vectors, Vectors, Vectors], tuple[Vectors, Array]
]
"""`(carry, a vector per array, constants) -> (carry, y)`, y in float32."""

_LANES = 128  # threads of a warpgroup: what a vector is a multiple of
_MOST_ROWS = 65_535  # along the first axis of a grid
_MOST_COLUMNS = 1024  # eight numbers of a vector in a thread


def sizes(x: Array) -> MosaicGpuConfig:
  """Two channels to a thread where they divide: fewer programs to start.

  Args:
    x: Inputs. [b d]
  """
  columns = 2 * _LANES if x.shape[1] % (2 * _LANES) == 0 else _LANES
  return MosaicGpuConfig(columns=columns)


def unfit(x: Array, config: MosaicGpuConfig) -> str | None:
  """Why the kernel does not take the inputs, or None.

  Args:
    x: Inputs. [b d]
    config: `columns` channels per program: a multiple of the threads of a
      warpgroup, which divides d.
  """
  columns = config.columns
  if columns < 1 or columns % _LANES or x.shape[1] % columns:
    return (
      f"cannot cut {x.shape[1]} channels into {columns}; it takes a multiple "
      f"of {_LANES} that divides them"
    )
  if columns > _MOST_COLUMNS:
    return f"takes {_MOST_COLUMNS} channels per program at most, not {columns}"
  return unfit_tokens(x)


def unfit_tokens(x: Array) -> str | None:
  """Why no kernel takes the inputs, however they are cut, or None.

  Args:
    x: Inputs. [b d]
  """
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    return f"takes bfloat16 and float32, and these are {x.dtype}"
  if x.shape[0] > _MOST_ROWS:
    return f"takes {_MOST_ROWS} rows at most, not {x.shape[0]}"
  return None


def step(
  cell: TokenCell,
  arrays: Sequence[Float[Array, "b d"]],
  constants: Float[Array, "m d"] | None,
  pool: Float[Array, "s r d"],
  slots: tuple[Int32[Array, "b"], Int32[Array, "b"]],
  config: MosaicGpuConfig,
  name: str,
) -> tuple[Float32[Array, "b d"], Float[Array, "s r d"]]:
  """Advances b rows by one token in one launch, with the pool in place.

  Args:
    cell: One token of some channels.
    arrays: What a token brings.
    constants: Vectors that `cell` gets as a tuple, or None for none.
    pool: Carries of r vectors, donated.
    slots: What each row reads, a slot or ZERO, and writes, a slot that no other
      row reads or writes, or NONE.
    config: `columns` (channels) per program.
    name: What a profile calls the kernel.

  Returns:
    y and the pool.
  """
  b, width = arrays[0].shape

  def body(operands: Any, results: Any, _: Any) -> None:
    fields: Any = cell, *operands, *results, config
    _Program(*fields).run()

  y, pool = launch(
    body,
    (list(arrays), constants, slots),
    [new(b, width, dtype=jnp.float32), pool],
    (),
    grid={"row": b, "tile": width // config.columns},
    config=config,
    name=name,
  )
  return y, pool


class _Program(NamedTuple):
  """Some channels of one row.

  Attributes:
    cell: What a token does to the carry.
    arrays: What tokens bring, in global memory. [b d] each
    constants: The vectors that `cell` gets [m d], or None.
    slots: What rows read and write. [b] each
    y: The outputs. [b d]
    pool: The pool of carries. [s r d]
    config: Sizes of the program.
  """

  cell: TokenCell
  arrays: list[Ref]
  constants: Ref
  slots: tuple[Ref, Ref]
  y: Ref
  pool: Ref
  config: MosaicGpuConfig

  def run(self) -> None:
    """Reads a carry, advances it by one token and writes it."""
    row, columns = lax.axis_index("row"), self._columns
    read, write = (slots[row] for slots in self.slots)
    inputs = tuple(x[row, columns] for x in self.arrays)
    carry = self._restore(read)
    carry, self.y[row, columns] = self.cell(carry, inputs, self._constants())

    @pl.when(write >= 0)
    def _() -> None:
      for index, vector in enumerate(carry):
        self.pool[write, index, columns] = vector

  @property
  def _columns(self) -> Any:
    width = self.config.columns
    return pl.ds(pl.multiple_of(lax.axis_index("tile") * width, width), width)

  def _constants(self) -> Vectors:
    if self.constants is None:
      return ()
    count = self.constants.shape[0]
    return tuple(self.constants[index, self._columns] for index in range(count))

  def _restore(self, slot: Array) -> Vectors:
    """The carry that a slot holds, or zeros at ZERO: slot 0 is read then."""
    vectors = []
    for index in range(self.pool.shape[1]):
      stored = self.pool[lax.max(slot, 0), index, self._columns]
      vectors.append(choose(slot >= 0, stored, jnp.zeros_like(stored)))
    return tuple(vectors)
