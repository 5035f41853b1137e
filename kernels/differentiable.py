"""The differentiable core of the packed operations: one request, no pool.

The forward pass is the packed operation itself, in whatever implementation, on
a pool of the states that are asked for: its bits are those of serving. For a
gradient it captures the state after every chunk and keeps nothing else; the
backward pass takes the chunks in reverse and differentiates each, in XLA
operations, from the state before it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from sparse_prefix_jax.kernels.captures import check_captures
from sparse_prefix_jax.kernels.checks import check_array, check_axes
from sparse_prefix_jax.kernels.chunks import (
  CARRY,
  NONE,
  Captures,
  Chunks,
)

Packed: TypeAlias = Callable[[Any, Any, Any, Chunks], tuple[Any, Any]]
"""`(constants, inputs [n ...], pool, chunks) -> (out [n ...], pool)`."""
Chunk: TypeAlias = Callable[[Any, Any, Any, Array], tuple[Any, Any]]
"""`(constants, state, input, length) -> (state, out)` of one chunk."""


class Scanned(NamedTuple):
  """What the core of an operation returns.

  Attributes:
    out: The outputs of n chunks. [n c ...]
    state: The state after the last chunk.
    captured: The states after `capture_at[i]` chunks each. [m ...]
  """

  out: Any
  state: Any
  captured: Any


@dataclasses.dataclass(frozen=True)
class Core:
  """How to run a packed operation, and one chunk of it in XLA operations.

  Attributes:
    packed: The operation, which is the forward pass.
    chunk: The same mathematics for one chunk, which the backward pass
      differentiates.
  """

  packed: Packed
  chunk: Chunk


def core_of(
  operation: Callable[..., tuple[Array, Array]],
  chunk: Callable[..., tuple[Array, Array]],
  *,
  precision: lax.Precision,
  **options: Any,
) -> Core:
  """The core of an operation on matrix states, without constants.

  Args:
    operation: `(*inputs, pool, chunks, precision=, **options)` -> out, pool.
    chunk: `(state, *inputs, length=, precision=)` -> state, out.
    precision: Precision of the products.
    **options: Further options of the operation.
  """

  def packed(
    _: Any, x: Any, pool: Array, chunks: Chunks
  ) -> tuple[Array, Array]:
    return operation(*x, pool, chunks, precision=precision, **options)

  def one(_: Any, state: Array, x: Any, length: Array) -> tuple[Array, Array]:
    return chunk(state, *x, length=length, precision=precision)

  return Core(packed, one)


def without_gradient(run: Callable[..., Any], why: str) -> Callable[..., Any]:
  """Refuses derivatives of an operation in one sentence, forward ones too.

  Args:
    run: `(*arrays, **options)` -> its results, which are unchanged.
    why: What the sentence says.

  Example:
    >>> jax.grad(without_gradient(jnp.round, "no gradient."))(1.5)
    Traceback (most recent call last):
    ValueError: no gradient.
  """

  def refuse(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise ValueError(why)

  def refusing(*arrays: Any, **options: Any) -> Any:
    operation = jax.custom_jvp(functools.partial(run, **options))
    operation.defjvp(refuse)
    return operation(*arrays)

  return refusing


def scan(
  core: Core,
  inputs: Any,
  state: Array,
  length: Int32[Array, "n"],
  capture_at: Captures = (),
  constants: Any = (),
) -> Scanned:
  """Scans the chunks of one request; differentiable in all but the integers.

  Args:
    core: What to run.
    inputs: A tree of arrays [n ...].
    state: The state before the first chunk, in the dtype of the pool.
    length: Real tokens of each chunk.
    capture_at: Numbers of chunks, each in 1..n, distinct; traced values are
      allowed and are then not checked.
    constants: Weights that every chunk sees, a tree of arrays.

  Returns:
    Outputs, the last state, and the captured states in the order asked.

  Raises:
    ValueError: If `length` is no vector or empty, if `capture_at` is no list of
      integers, or if a concrete one is repeated or outside 1..n.
  """
  check_axes("the scan", length=(length, "n"))
  check_array("the scan", "initial_state", state)
  for leaf in jax.tree.leaves((inputs, constants)):
    check_array("the scan", "an input", leaf)
  capture_at = check_captures(capture_at, length.shape[0])
  return _scan(core, inputs, state, length, capture_at, constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(
  core: Core,
  inputs: Any,
  state: Array,
  length: Int32[Array, "n"],
  capture_at: Int32[Array, "m"],
  constants: Any,
) -> Scanned:
  """Scans without a gradient: keeps the states asked for, and the last.

  Slot 0 holds the state before the first chunk, later that after the last.
  """
  n, m = length.shape[0], capture_at.shape[0]
  slots = jnp.where(capture_at == n, 0, jnp.arange(1, m + 1, dtype=jnp.int32))
  write = jnp.full(n, NONE, jnp.int32).at[capture_at - 1].set(slots)
  write = write.at[n - 1].set(0)
  pool = jnp.zeros((m + 1, *state.shape), state.dtype).at[0].set(state)
  out, pool = core.packed(constants, inputs, pool, _one_request(write, length))
  return Scanned(out, pool[0], pool[slots])


def _forward(
  core: Core,
  inputs: Any,
  state: Array,
  length: Int32[Array, "n"],
  capture_at: Int32[Array, "m"],
  constants: Any,
) -> tuple[Scanned, Any]:
  """Captures the state after every chunk, for the backward pass."""
  n = length.shape[0]
  pool = jnp.zeros((n + 1, *state.shape), state.dtype).at[0].set(state)
  chunks = _one_request(jnp.arange(1, n + 1, dtype=jnp.int32), length)
  out, states = core.packed(constants, inputs, pool, chunks)
  kept = inputs, states[:-1], length, capture_at, constants
  return Scanned(out, states[-1], states[capture_at]), kept


def _backward(core: Core, kept: Any, cotangents: Scanned) -> tuple[Any, ...]:
  """Takes the chunks in reverse, each from the state before it."""
  inputs, states, length, capture_at, constants = kept
  d_captured = (
    jnp.zeros_like(states).at[capture_at - 1].add(cotangents.captured)
  )

  def chunk(carry: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
    d_state, d_constants = carry
    inputs, state, length, d_out, d_here = x

    def run(constants: Any, state: Array, inputs: Any) -> tuple[Any, Any]:
      return core.chunk(constants, state, inputs, length)

    _, pull = jax.vjp(run, constants, state, inputs)
    d_here, d_state, d_inputs = pull((d_state + d_here, d_out))
    d_here = jax.tree.map(lambda x: x.astype(jnp.float32), d_here)
    return (d_state, jax.tree.map(jnp.add, d_constants, d_here)), d_inputs

  # The sum over chunks is float32, whatever the constants are.
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), constants)
  (d_state, d_constants), d_inputs = lax.scan(
    chunk,
    (cotangents.state, zeros),
    (inputs, states, length, cotangents.out, d_captured),
    reverse=True,
  )
  d_constants = jax.tree.map(
    lambda x, d: d.astype(x.dtype), constants, d_constants
  )
  return d_inputs, d_state, None, None, d_constants


_scan.defvjp(_forward, _backward)


def _one_request(write: Int32[Array, "n"], length: Int32[Array, "n"]) -> Chunks:
  """The chunks of one request that resumes from slot 0."""
  nothing = jnp.zeros_like(length)
  read = jnp.where(jnp.arange(length.shape[0], dtype=jnp.int32) == 0, 0, CARRY)
  return Chunks(read, write, length, nothing, nothing)
