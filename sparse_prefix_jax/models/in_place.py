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
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.layout import Format, Layout

from sparse_prefix_jax.kernels.mosaic_tpu import fit as fit


def kernel_format(
  shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> Format | None:
  """How a TPU keeps a pool for its kernels; None leaves it to XLA.

  Args:
    shape: Of the pool, its slots first.
    dtype: Of the pool.
    sharding: Where it is; a layout is always one of some device.
  """
  order = fit.order_of_pool(shape, dtype)
  return None if order is None else Format(Layout(order), sharding)


def make_pools(make: Callable[[], Any], beside: Any) -> Any:
  """What `make` returns, in the order that the kernels of its device take.

  Args:
    make: Returns a tree of fresh pools; traceable.
    beside: An array that is where the pools shall be, such as a weight. While
      it is traced, `make` is called and no more.
  """
  if isinstance(beside, Tracer) or not _on_one_tpu(beside):
    return make()

  def chosen(x: jax.ShapeDtypeStruct) -> Format | jax.sharding.Sharding:
    return kernel_format(x.shape, x.dtype, beside.sharding) or beside.sharding

  formats = jax.tree.map(chosen, jax.eval_shape(make))
  return jax.jit(make, out_shardings=formats)()


def _on_one_tpu(x: Any) -> bool:
  """Whether x is an array on a TPU: no kernel is partitioned over several."""
  if not isinstance(x, jax.Array):
    return False
  devices = list(x.sharding.device_set)
  return len(devices) == 1 and devices[0].platform == "tpu"


class PoolProgram:
  """`jax.jit` of a function of `pools`: donated, returned as they came.

  Called and lowered as a jitted function is, by position. Pools that are not
  bound to a device, as all are that nobody has placed, are left to `jax.jit`,
  and so are traced ones: their memory order is that of the program around them.

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
      function: One of its parameters is `pools`, a tree of arrays.
      results: What it returns, given pools: where they are in it, and None for
        everything else.
    """
    functools.update_wrapper(self, function)
    self._function, self._results = function, results
    self._index = list(inspect.signature(function).parameters).index("pools")
    self._programs: dict[Any, Any] = {}

  def __call__(self, *arguments: Any) -> Any:
    """Runs the function, compiled for the format of these pools."""
    return self._program(arguments)(*arguments)

  def lower(self, *arguments: Any) -> jax.stages.Lowered:
    """As of a jitted function; arguments may be shapes, with their formats."""
    return self._program(arguments).lower(*arguments)

  def trace(self, *arguments: Any) -> jax.stages.Traced:
    """As of a jitted function."""
    return self._program(arguments).trace(*arguments)

  def _program(self, arguments: tuple[Any, ...]) -> Any:
    """The jitted function for these pools: one per format, mostly one."""
    leaves, structure = jax.tree.flatten(arguments[self._index])
    formats = tuple(map(_given_format, leaves))
    key = (structure, formats) if any(formats) else None
    if key not in self._programs:
      given = None if key is None else jax.tree.unflatten(structure, formats)
      self._programs[key] = jax.jit(
        self._function,
        donate_argnums=self._index,
        out_shardings=None if given is None else self._results(given),
      )
    return self._programs[key]

  def _cache_size(self) -> int:
    """As of a jitted function: how many programs there are."""
    return sum(program._cache_size() for program in self._programs.values())


def _given_format(x: Any) -> Format | None:
  """The format that an array is bound to, or a shape names."""
  if isinstance(x, Tracer):
    return None
  if isinstance(x, jax.Array) and not x.committed:
    return None
  found = getattr(x, "format", None)
  return None if found is None or found.layout is None else found
