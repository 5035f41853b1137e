"""causal_conv1d on GPU: some tokens of a chunk per program, all at once.

An output is made of w inputs and of no other output, so nothing here has an
order but the sum over the taps, in float32. A program takes up to 16 tokens of
some channels. With the w-1 inputs before a chunk put in front of it,

    y_t = sum_i weight_i extended_{t+i}
    state after the chunk = extended_{length}, ..., extended_{length+w-2}

and the state has the bits of the inputs. Each thread has channels of its own:
there is no shared memory, and nobody waits for anybody.

What is before a chunk is gathered first, by XLA, into an array of the size of n
slots. It is the end of the chunk before, or comes from a slot, which a program
of this very call may be about to overwrite: a request may end in the slot that
it began with.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax.kernels.chunks import CARRY, Chunks
from sparse_prefix_jax.kernels.implementations import Device, Implementation
from sparse_prefix_jax.kernels.mosaic_gpu.devices import (
  refused_device,
  within_grid,
)
from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig,
  Ref,
  choose,
  launch,
  new,
)

_COLUMNS = (128, 256)  # channels of a program: one or two per thread
_TOGETHER = 16  # tokens of a program, whose loads overlap


def packed(
  x: Float[Array, "n c d"],
  weight: Float[Array, "w d"],
  pool: Float[Array, "s w-1 d"],
  chunks: Chunks,
  *,
  config: MosaicGpuConfig,
) -> tuple[Float32[Array, "n c d"], Float[Array, "s w-1 d"]]:
  """Gathers what is before each chunk, then runs the operation in one launch.

  It is called as `causal_conv1d` is.

  Returns:
    y, zero past a chunk's length, and the pool.
  """
  n, c, width = x.shape
  tokens = math.gcd(c, _TOGETHER)
  places = [field.astype(jnp.int32) for field in (chunks.length, chunks.write)]

  def body(operands: Any, results: Any, _: Any) -> None:
    fields: Any = *operands, *results, tokens, config.columns
    _Program(*fields).run()

  y, pool = launch(
    body,
    (*places, before(x, pool, chunks), x, weight),
    [new(n, c, width, dtype=jnp.float32), pool],
    (),
    grid={"chunk": n, "part": c // tokens, "tile": width // config.columns},
    config=config,
    name="causal_conv1d",
    apart=True,
  )
  return y, pool


def before(
  x: Float[Array, "n c d"], pool: Float[Array, "s r d"], chunks: Chunks
) -> Float[Array, "n r d"]:
  """The last r inputs before each chunk, oldest first.

  The real tokens of a call are numbered through. Those before a chunk are the
  tokens of the chunks before it, as far back as its segment goes (its
  predecessor need not be full, nor have any), and what is older is in the slot
  that the segment resumes from, or zero.

  Args:
    x: Inputs.
    pool: The last r inputs per slot.
    chunks: What each chunk reads and holds.
  """
  index = jnp.arange(x.shape[0])
  earlier = index[None] < index[:, None]
  begin = jnp.sum(jnp.where(earlier, chunks.length[None], 0), axis=1)
  end = begin + chunks.length
  starts = (index[None] <= index[:, None]) & (chunks.read[None] != CARRY)
  first = jnp.max(jnp.where(starts, index[None], 0), axis=1)
  start = begin[first][:, None]
  token = begin[:, None] + jnp.arange(-pool.shape[1], 0)[None]
  inside = token >= start
  held = jnp.maximum(token, start)
  chunk = jnp.sum(end[None, None] <= held[:, :, None], axis=2)
  chunk = jnp.minimum(chunk, x.shape[0] - 1)
  row = jnp.minimum(held - begin[chunk], x.shape[1] - 1)
  older = jnp.minimum(token - start, -1) + pool.shape[1]
  slot = chunks.read[first][:, None]
  stored = pool[jnp.maximum(slot, 0), older]
  stored = jnp.where((slot >= 0)[:, :, None], stored, jnp.zeros_like(stored))
  return jnp.where(inside[:, :, None], x[chunk, row], stored)


class _Program(NamedTuple):
  """Some tokens of a chunk, of some channels.

  Attributes:
    length: Real tokens of each chunk. [n]
    write: The slot that each chunk writes, or NONE. [n]
    before: The inputs before each chunk, oldest first. [n w-1 d]
    x: The inputs. [n c d]
    weight: The taps, oldest first. [w d]
    y: The outputs. [n c d]
    pool: The last inputs per slot, which is only written. [s w-1 d]
    tokens: How many tokens the program takes.
    width: How many channels it takes.
  """

  length: Ref
  write: Ref
  before: Ref
  x: Ref
  weight: Ref
  y: Ref
  pool: Ref
  tokens: int
  width: int

  def run(self) -> None:
    """Writes the outputs of the program's tokens, the first one the state."""
    chunk, part = lax.axis_index("chunk"), lax.axis_index("part")
    length, slot = self.length[chunk], self.write[chunk]
    first = part * self.tokens
    pl.when(first < length)(lambda: self._filter(first, length))
    pl.when(first >= length)(lambda: self._clear(first))
    pl.when((part == 0) & (slot >= 0))(lambda: self._capture(slot, length))

  @property
  def _columns(self) -> Any:
    start = lax.axis_index("tile") * self.width
    return pl.ds(pl.multiple_of(start, self.width), self.width)

  def _token(self, t: Array) -> Array:
    """The input of a token of the chunk."""
    return self.x[lax.axis_index("chunk"), t, self._columns]

  def _extended(self, row: Array) -> Array:
    """A row of what is before the chunk, with the chunk behind it."""
    chunk, past = lax.axis_index("chunk"), self.before.shape[1]
    stored = self.before[chunk, lax.min(row, past - 1), self._columns]
    return choose(row < past, stored, self._token(lax.max(row - past, 0)))

  def _filter(self, first: Array, length: Array) -> None:
    """Writes y, and zeros behind the last real token.

    Padding may be NaN; it is read, and selected away.

    Args:
      first: The program's first token.
      length: Real tokens of the chunk.
    """
    chunk, past = lax.axis_index("chunk"), self.before.shape[1]
    rows = [self._extended(first + i) for i in range(past)]
    rows += [self._token(first + t) for t in range(self.tokens)]
    rows = [row.astype(jnp.float32) for row in rows]
    taps = [self.weight[tap, self._columns] for tap in range(past + 1)]
    taps = [tap.astype(jnp.float32) for tap in taps]
    zeros = jnp.zeros((self.width,), jnp.float32)
    for t in range(self.tokens):
      y = zeros
      for value, tap in zip(rows[t : t + past + 1], taps, strict=True):
        y = y + value * tap
      real = first + t < length
      self.y[chunk, first + t, self._columns] = choose(real, y, zeros)

  def _clear(self, first: Array) -> None:
    """Writes zeros for tokens that are all padding."""
    zeros = jnp.zeros((self.width,), jnp.float32)
    for t in range(self.tokens):
      self.y[lax.axis_index("chunk"), first + t, self._columns] = zeros

  def _capture(self, slot: Array, length: Array) -> None:
    """Writes the last inputs after the chunk to a slot."""
    for row in range(self.before.shape[1]):
      self.pool[slot, row, self._columns] = self._extended(length + row)


def refusal(
  device: Device,
  config: MosaicGpuConfig,
  x: Array,
  weight: Array,
  pool: Array,
  *_: Any,
) -> str | None:
  """Why the kernel does not take these arguments, or None.

  Args:
    device: What the program is made for.
    config: `columns` channels per program: 128 or 256, which divide d.
    x: Inputs. [n c d]
    weight: Filter. [w d]
    pool: Windows. [s w-1 d]
    *_: Further arguments, which do not matter here.
  """
  if x.dtype not in (jnp.bfloat16, jnp.float32):
    return f"takes bfloat16 and float32, and these are {x.dtype}"
  if pool.dtype != x.dtype:
    return f"takes a pool of {x.dtype}, the dtype of x, not {pool.dtype}"
  if weight.shape[0] < 2:
    return "takes two taps or more: with one there is nothing to carry"
  if config.columns not in _COLUMNS or x.shape[2] % config.columns:
    return f"cannot cut {x.shape[2]} channels into {config.columns}"
  return refused_device(device, config, products=False)


def heuristic(device: Device, x: Array, *_: Any) -> MosaicGpuConfig:
  """Takes two channels per thread where they can be cut so: wider accesses."""
  fits = [columns for columns in _COLUMNS if x.shape[2] % columns == 0]
  return MosaicGpuConfig(columns=max(fits, default=_COLUMNS[0]))


IMPLEMENTATION = Implementation(
  config=MosaicGpuConfig,
  run=packed,
  refusal=within_grid(refusal),
  heuristic=heuristic,
)
