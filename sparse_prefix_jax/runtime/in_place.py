"""Programs that update pools in place, in the memory order that kernels take.

A kernel for TPU takes a pool in the order of its axes. XLA, which wastes no
memory, keeps rows that do not fill the lanes of a register (heads of 64) in
another order, and copies the whole pool before and after each kernel, scatter
and loop. So on a TPU such pools are made in the kernels' order (`make_pools`),
and every program that takes pools gives them back as they came (`PoolProgram`):
a result is in XLA's order unless `jax.jit` is told otherwise. Other devices
have one order, and nothing is asked of them.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.layout import Format, Layout

from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit
from sparse_prefix_jax.runtime.compiling import Program


def kernel_format(
  shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> Format | None:
  """Says how a TPU keeps a pool for its kernels.

  Args:
    shape: The shape of the pool, its slots first.
    dtype: The type of its elements.
    sharding: Where it is; a layout is always one of some device.

  Returns:
    The format to ask for, or None where XLA chooses the same by itself.
  """
  order = fit.order_of_pool(shape, dtype)
  return None if order is None else Format(Layout(order), sharding)


def make_pools(make: Callable[[], Any], beside: Any) -> Any:
  """Makes pools in the memory order that the kernels of their device take.

  Args:
    make: A function that returns a tree of fresh pools, and can be traced.
    beside: An array that is where the pools shall be, such as a weight. While
      it is traced, `make` is called and no more.

  Returns:
    What `make` returns, in that order.
  """
  if isinstance(beside, Tracer) or not _on_one_tpu(beside):
    return make()

  def chosen(x: jax.ShapeDtypeStruct) -> Format | jax.sharding.Sharding:
    return kernel_format(x.shape, x.dtype, beside.sharding) or beside.sharding

  formats = jax.tree.map(chosen, jax.eval_shape(make))
  return jax.jit(make, out_shardings=formats)()


def place_like(
  function: Callable[[Any, int], Any], pool: jax.Array, rows: int
) -> jax.Array:
  """Runs a function of a pool; its result is where the pool is, in its order.

  It is compiled once for all pools of one shape, if it is the same function.

  Args:
    function: A function of one array and of the rows of its result.
    pool: What it is given.
    rows: How many slots or pages its result has.
  """
  chosen = None
  if _on_one_tpu(pool):
    shape = (rows, *pool.shape[1:])
    chosen = kernel_format(shape, pool.dtype, pool.sharding) or pool.sharding
  return _placing(function, chosen)(pool, rows)


@functools.cache
def _placing(
  function: Callable[[Any, int], Any],
  chosen: Format | jax.sharding.Sharding | None,
) -> Callable[[Any, int], Any]:
  """The function, compiled with a place for its result."""
  return jax.jit(function, static_argnums=1, out_shardings=chosen)


def shape_like(pool: jax.Array, rows: int) -> jax.ShapeDtypeStruct:
  """What stands for a pool of another size while a program is lowered.

  Args:
    pool: One of today's.
    rows: How many slots or pages the other one has.
  """
  shape = (rows, *pool.shape[1:])
  if not getattr(pool, "committed", False):
    return jax.ShapeDtypeStruct(shape, pool.dtype)
  place = kernel_format(shape, pool.dtype, pool.sharding)
  if place is None or not _on_one_tpu(pool):
    return jax.ShapeDtypeStruct(shape, pool.dtype, sharding=pool.sharding)
  return jax.ShapeDtypeStruct(shape, pool.dtype, sharding=place)


def _on_one_tpu(x: Any) -> bool:
  """Whether x is an array on a TPU: no kernel is partitioned over several."""
  alone = isinstance(x, jax.Array) and len(x.sharding.device_set) == 1
  return alone and _on_tpu(x)


def _on_tpu(x: Any) -> bool:
  """Whether an array, or a shape with a sharding, is on TPUs."""
  return next(iter(x.sharding.device_set)).platform == "tpu"


class PoolProgram(Program):
  """A program of `pools`, which are donated and returned as they came.

  Its arguments are taken by position. On a TPU the formats are read in every
  call: nothing else tells apart two pools of one shape in one place. Left to
  `jax.jit` are pools on other devices; those not bound to a device, as all are
  that nobody has placed; and traced ones, whose memory order is that of the
  program around them.

  Example:
    >>> import jax.numpy as jnp
    >>> def put(pools, slot, state):
    ...   return pools.at[slot].set(state)
    >>> program = PoolProgram(put)
    >>> program(jnp.zeros(3), 1, 2.0)
    Array([0., 2., 0.], dtype=float32)
  """

  def __init__(
    self,
    function: Callable[..., Any],
    results: Callable[[Any], Any] = lambda pools: pools,
  ) -> None:
    """Compiles nothing yet.

    Args:
      function: What to compile; one of its parameters is `pools`, a tree of
        arrays.
      results: What it returns, given pools: where they are in it, and None for
        everything else.
    """
    super().__init__(function)
    self._results = results
    self._index = list(inspect.signature(function).parameters).index("pools")

  def _program(self, arguments: tuple[Any, ...]) -> Any:
    """Finds the jitted function for these pools; there is one per format.

    Pools may be shapes, with their formats.

    Raises:
      TypeError: If too few arguments are given.
    """
    if len(arguments) <= self._index:
      raise TypeError(
        f"`pools` is argument {self._index + 1}; given are {len(arguments)}."
      )
    leaves, structure = jax.tree.flatten(arguments[self._index])
    formats = _formats(leaves)
    key = (structure, formats) if any(formats) else None
    given = None if key is None else jax.tree.unflatten(structure, formats)
    return self._jitted(
      arguments,
      key,
      donate_argnums=self._index,
      out_shardings=None if given is None else self._results(given),
    )


def _formats(pools: Sequence[Any]) -> tuple[Format | None, ...]:
  """Lists the formats to keep; there are none unless a TPU holds the pools.

  Whatever a program takes is in one place, so the first that is bound to a
  device tells where.
  """
  bound = next(filter(_is_bound, pools), None)
  if bound is None or not _on_tpu(bound):
    return ()
  return tuple(x.format if _is_bound(x) else None for x in pools)


def _is_bound(x: Any) -> bool:
  """Whether x is an array bound to a device, or a shape that names a format."""
  if isinstance(x, jax.ShapeDtypeStruct):
    return x.format.layout is not None
  return not isinstance(x, Tracer) and getattr(x, "committed", False)
