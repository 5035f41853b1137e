"""What `benchmarks.kernels` times: cases, their inputs, their least work.

The shapes are those of models that are served: Gated DeltaNet of Qwen3.5 (16
key heads of 128), Kimi Linear, Mamba-2 (one key head of 128, value heads of
64), RG-LRU, Mamba (16 states), the short convolution over queries, keys and
values, and grouped attention (eight query heads to one of keys).
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.kernels.causal_conv1d import causal_conv1d
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, Chunks
from sparse_prefix_jax.kernels.diagonal_scan import diagonal_scan
from sparse_prefix_jax.kernels.gated_delta_rule import gated_delta_rule
from sparse_prefix_jax.kernels.implementations import Implementation
from sparse_prefix_jax.kernels.kimi_delta_attention import kimi_delta_attention
from sparse_prefix_jax.kernels.lattice_attention import (
  BLOCK_PAGES,
  lattice_attention,
)
from sparse_prefix_jax.kernels.linear_attention import linear_attention

_FOLDERS = {"selective_scan": "diagonal_scan"}
CHUNK, KEY, WINDOW, STATES = 64, 128, 4, 16


class Case(NamedTuple):
  """One call: `requests` prefills of `tokens` each, all resumed from slots.

  Attributes:
    operation: A key of `OPERATIONS`.
    requests: Packed together.
    tokens: Of each request, a multiple of the chunk.
    heads: Value heads, or what stands for them.
    captures: States captured per request, beside the last.
    dtype: Of the inputs.
  """

  operation: str
  requests: int
  tokens: int
  heads: int
  captures: int
  dtype: str

  @property
  def packed(self) -> int:
    """Packed chunks n."""
    return self.requests * self.tokens // CHUNK

  @property
  def slots(self) -> int:
    """One that a request resumes from and ends in, and one per capture."""
    return self.requests * (1 + self.captures)

  def captured(self) -> np.ndarray:
    """Chunks of a request after which a state is captured, evenly spread.

    The last chunk is not among them: its state is kept in any case, and is one
    of as many captures as there are chunks.
    """
    before = self.tokens // CHUNK - 1
    if self.captures == 1 and before:
      return np.array([before // 2])
    spread = np.linspace(0, before - 1, min(self.captures, before))
    return spread.round().astype(int)

  def chunks(self) -> Chunks:
    """Captures, and the last state, which replaces the first."""
    per_request = self.tokens // CHUNK
    place = np.arange(self.packed, dtype=np.int32) % per_request
    request = np.arange(self.packed, dtype=np.int32) // per_request
    first = request * (1 + self.captures)
    write = np.full(self.packed, NONE, np.int32)
    for index, chunk in enumerate(self.captured()):
      write[place == chunk] = (first + 1 + index)[place == chunk]
    write[place == per_request - 1] = first[place == per_request - 1]
    return Chunks(
      read=jnp.asarray(np.where(place == 0, first, CARRY), jnp.int32),
      write=jnp.asarray(write),
      length=jnp.full(self.packed, CHUNK, jnp.int32),
      position=jnp.asarray(place * CHUNK),
      request=jnp.asarray(request),
    )


class Call(NamedTuple):
  """A case made concrete: `run(inputs, pools, chunks)` -> (out, pools).

  Attributes:
    run: The operation; takes `implementation=` too.
    inputs: Arrays.
    pools: Donated.
    flops: Least floating point operations of the chunked form.
    moved: Least bytes that come and go: inputs, outputs, states.
  """

  run: Callable[..., Any]
  inputs: Any
  pools: Any
  flops: float
  moved: float


def _normal(*shape: int, dtype: str = "float32", seed: int = 0) -> jax.Array:
  random = np.random.default_rng(seed)
  return jnp.asarray(random.standard_normal(shape, np.float32), dtype)


def _unit(x: jax.Array) -> jax.Array:
  wide = x.astype(jnp.float32)
  norm = jnp.linalg.norm(wide, axis=-1, keepdims=True)
  return (wide / norm).astype(x.dtype)


def _gates(*shape: int) -> jax.Array:
  """Log decays as gates give them; a tenth of the tokens forget much."""
  return -0.3 * jax.nn.softplus(2 * _normal(*shape, seed=1))


def _bytes(*trees: Any) -> float:
  leaves = jax.tree.leaves(trees)
  return float(sum(x.size * x.dtype.itemsize for x in leaves))


def _call(
  case: Case,
  run: Callable[..., Any],
  inputs: Any,
  slot: tuple[int, ...],
  flops: float,
  dtype: str = "float32",
) -> Call:
  """A call on one pool; it reads and writes each of its slots at most once."""
  pool = _normal(case.slots, *slot, dtype=dtype, seed=2)
  out = jax.eval_shape(run, inputs, (pool,), case.chunks())[0]
  states = _bytes(pool[0]) * (case.slots + case.requests)
  return Call(run, inputs, (pool,), flops, _bytes(inputs, out) + states)


def _matrix(case: Case) -> Call:
  """The three operations on states [s hv k v]."""
  operation = {
    "gated_delta_rule": gated_delta_rule,
    "kimi_delta_attention": kimi_delta_attention,
    "linear_attention": linear_attention,
  }[case.operation]
  n, hv, delta = case.packed, case.heads, case.operation != "linear_attention"
  h = {
    "gated_delta_rule": 16 if hv % 16 == 0 else hv,
    "linear_attention": 1,
  }
  h, v_width = h.get(case.operation, hv), KEY if delta else KEY // 2
  per_channel = (KEY,) if case.operation == "kimi_delta_attention" else ()
  q, k = (
    _unit(_normal(n, CHUNK, h, KEY, dtype=case.dtype, seed=s)) for s in (3, 4)
  )
  v = _normal(n, CHUNK, hv, v_width, dtype=case.dtype, seed=5)
  inputs = [q * jnp.asarray(KEY**-0.5, q.dtype), k, v]
  inputs.append(_gates(n, CHUNK, hv, *per_channel))
  if delta:
    inputs.append(jax.nn.sigmoid(_normal(n, CHUNK, hv, seed=6)))

  def run(inputs: Any, pools: Any, chunks: Chunks, **options: Any) -> Any:
    out, pool = operation(*inputs, *pools, chunks, **options)
    return out, (pool,)

  c, square = CHUNK, CHUNK * CHUNK
  state = 2 * c * KEY * v_width  # one product with the state
  per_head = 2 * state + 2 * square * v_width
  pairs = 2 * square * KEY * (1 if delta is False else 2)
  if delta:
    per_head += state + square * (v_width + KEY)  # X_k S, and the solve
  flops = n * (hv * per_head + (hv if per_channel else h) * pairs)
  return _call(case, run, inputs, (hv, KEY, v_width), flops)


def _diagonal(case: Case) -> Call:
  """RG-LRU of 128 channels per head, or Mamba of 64 with 16 states."""
  selective = case.operation == "selective_scan"
  n, d = case.packed, case.heads * (64 if selective else 128)
  inputs: dict[str, Any] = {
    "x": _normal(n, CHUNK, d, dtype=case.dtype, seed=3),
    "log_decay": _gates(n, CHUNK, d),
  }
  if selective:
    inputs["rate"] = jnp.ones((d, STATES), jnp.float32)
    for seed, name in enumerate("bc", start=4):
      shape = n, CHUNK, STATES
      inputs[name] = _normal(*shape, dtype=case.dtype, seed=seed)

  def run(inputs: Any, pools: Any, chunks: Chunks, **options: Any) -> Any:
    rest = dict(inputs)
    x, log_decay = rest.pop("x"), rest.pop("log_decay")
    (pool,) = pools
    y, pool = diagonal_scan(x, log_decay, pool, chunks, **rest, **options)
    return y, (pool,)

  slot = (d, STATES) if selective else (d,)
  per_number = 6 if selective else 3
  flops = n * CHUNK * math.prod(slot) * per_number
  return _call(case, run, inputs, slot, flops)


def _convolution(case: Case) -> Call:
  """Queries, keys and values of all heads: 384 channels per head."""
  n, d = case.packed, case.heads * 3 * KEY
  x = _normal(n, CHUNK, d, dtype=case.dtype, seed=3)
  weight = _normal(WINDOW, d, dtype=case.dtype, seed=4)

  def run(inputs: Any, pools: Any, chunks: Chunks, **options: Any) -> Any:
    (x, weight), (pool,) = inputs, pools
    y, pool = causal_conv1d(x, weight, pool, chunks, **options)
    return y, (pool,)

  flops = 2 * WINDOW * n * CHUNK * d
  return _call(case, run, (x, weight), (WINDOW - 1, d), flops, case.dtype)


def _attention(case: Case) -> Call:
  """Cold prefills: every chunk attends to its request's chunks before it."""
  n, h = case.packed, case.heads
  hkv = h // 8 if h % 8 == 0 else 1
  width, per_request = KEY, case.tokens // CHUNK
  q, k, v = (
    _normal(n, CHUNK, heads, width, dtype=case.dtype, seed=seed)
    for seed, heads in ((3, h), (4, hkv), (5, hkv))
  )
  pages = -(-per_request // BLOCK_PAGES) * BLOCK_PAGES
  own = np.arange(n, dtype=np.int32).reshape(case.requests, per_request)
  table = jnp.asarray(np.pad(own, ((0, 0), (0, pages - per_request))))
  pool = jnp.zeros((n, CHUNK, hkv, width), case.dtype)

  def run(inputs: Any, pools: Any, chunks: Chunks, **options: Any) -> Any:
    (q, k, v, table), (keys, values) = inputs, pools
    out, *pools = lattice_attention(
      q, k, v, keys, values, chunks, table, **options
    )
    return out, tuple(pools)

  inputs = q * jnp.asarray(width**-0.5, q.dtype), k, v, table
  pairs = case.requests * case.tokens**2 / 2
  flops = 4 * h * width * pairs
  moved = _bytes(inputs, q.astype(jnp.float32)) + 2 * _bytes(k, v)
  return Call(run, inputs, (pool, pool + 0), flops, moved)


OPERATIONS: dict[str, Callable[[Case], Call]] = {
  "gated_delta_rule": _matrix,
  "kimi_delta_attention": _matrix,
  "linear_attention": _matrix,
  "diagonal_scan": _diagonal,
  "selective_scan": _diagonal,
  "causal_conv1d": _convolution,
  "lattice_attention": _attention,
}
"""How each operation's call is made."""


IMPLEMENTATIONS: dict[str, Sequence[Implementation]] = {
  name: importlib.import_module(
    f"sparse_prefix_jax.kernels.{_FOLDERS.get(name, name)}.api"
  ).IMPLEMENTATIONS
  for name in OPERATIONS
}
"""The implementations of each, for their sizes."""


def make(case: Case) -> Call:
  """The call of a case, its arrays on the default device."""
  return OPERATIONS[case.operation](case)
