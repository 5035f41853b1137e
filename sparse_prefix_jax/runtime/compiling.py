"""How programs are compiled where XLA would choose by the number of rows.

On a GPU XLA measures several kernels for a product and takes the fastest: one
for 64 rows, another for 1,024, and perhaps others in the next process. They add
up in other orders, so rows have other bits (measured on an H200: up to a third
of all bits of a float32 product). Programs of a model are compiled without that
choice: then the library of products takes the kernel, by shape alone, and from
64 rows up its rows are the same for every number of them. Nor does XLA merge
products of one input: below a size it would, with few rows and not with many,
and each step of decoding would first copy their weights side by side.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.core import Tracer

from sparse_prefix_jax.kernels.implementations import current_device

_ON_GPU: Mapping[str, bool | int] = {
  "xla_gpu_autotune_level": 0,
  "xla_gpu_enable_triton_gemm": False,
  "xla_gpu_dot_merger_threshold_mb": 0,
}


def compiler_options() -> dict[str, bool | int] | None:
  """Returns what `jax.jit` has to be told for the bits of the contract.

  Programs of the library are compiled with it. Whoever wraps a model in a
  `jax.jit` of their own, and wants rows whose bits do not depend on their
  number, passes it on.

  Returns:
    Options by name on a GPU, None elsewhere.

  Example:
    >>> import jax
    >>> double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options())
    >>> double(21).item()
    42
  """
  return dict(_ON_GPU) if current_device().platform == "gpu" else None


class Program:
  """A function that is jitted with those options when it is first called.

  It is called and lowered as a jitted function is, inside of a larger program,
  too, which has to have the options then. Until then no device is
  looked for: that a module is imported must not choose one.

  Example:
    >>> Program(lambda x: 2 * x)(21).item()
    42
  """

  def __init__(self, function: Callable[..., Any], **options: Any) -> None:
    """Compiles nothing yet.

    Args:
      function: What to compile.
      **options: Of `jax.jit`, arguments by their numbers.
    """
    functools.update_wrapper(self, function)
    self._function, self._options = function, options
    self._programs: dict[Any, Any] = {}

  def __call__(self, *arguments: Any) -> Any:
    """Runs the function."""
    return self._program(arguments)(*arguments)

  def lower(self, *arguments: Any) -> jax.stages.Lowered:
    """Lowers the function, as `lower` of a jitted function does."""
    return self._program(arguments).lower(*arguments)

  def trace(self, *arguments: Any) -> jax.stages.Traced:
    """Traces the function, as `trace` of a jitted function does."""
    return self._program(arguments).trace(*arguments)

  def _cache_size(self) -> int:
    """Counts the compiled programs, as `_cache_size` of a jitted function."""
    return sum(program._cache_size() for program in self._programs.values())

  def _program(self, arguments: tuple[Any, ...]) -> Any:
    """Finds the jitted function for these arguments."""
    return self._jitted(arguments, None, **self._options)

  def _jitted(
    self, arguments: tuple[Any, ...], key: Any, **options: Any
  ) -> Any:
    """Makes the jitted function of a key; there is one for each, and device.

    Inside a larger program the options are those of that one, and `jax.jit`
    takes none.
    """
    chosen = compiler_options()
    if chosen is not None and _is_traced(arguments):
      chosen = None
    key = key, chosen is None
    if key not in self._programs:
      self._programs[key] = jax.jit(
        self._function, compiler_options=chosen, **options
      )
    return self._programs[key]


def _is_traced(arguments: tuple[Any, ...]) -> bool:
  """Whether a larger program is being made of these."""
  return any(isinstance(x, Tracer) for x in jax.tree.leaves(arguments))


def check_not_traced(beside: Any) -> None:
  """Refuses to work on arrays while JAX makes a program of the caller.

  What a program returns would be no array then, but a part of that program: a
  cache whose pools it took would never work again.

  Args:
    beside: Any array of floats: what is traced depends on the place, not on
      the value.

  Raises:
    ValueError: If so.

  Example:
    >>> import jax.numpy as jnp
    >>> check_not_traced(jnp.zeros(2))  # not within jit
  """
  if isinstance(jax.lax.stop_gradient(beside), Tracer):
    raise ValueError(
      "a cache changes arrays; call it outside of jit, scan and the like."
    )
