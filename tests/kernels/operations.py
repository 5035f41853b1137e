"""The packed operations as the suite calls them, each with its inputs.

An `Operation` says how tokens are drawn, what they must give (`reference`) and
how they are run. Inputs are [t ...] per request, in the operation's order.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_core,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.diagonal_scan import (
  diagonal_scan,
  diagonal_scan_core,
  diagonal_scan_step,
)
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule,
  gated_delta_rule_core,
  gated_delta_rule_step,
)
from sparse_prefix_jax.kernels.kimi_delta_attention import (
  kimi_delta_attention,
  kimi_delta_attention_core,
  kimi_delta_attention_step,
)
from sparse_prefix_jax.kernels.linear_attention import (
  linear_attention,
  linear_attention_core,
  linear_attention_step,
)
from tests.kernels import reference
from tests.kernels.packing import chunks_of

DECAYS = (0.0, -1e-4, -20.0, -1000.0, -np.inf)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
  """One packed operation at one shape; equal to no other, and hashable.

  Attributes:
    chunk: Tokens of a chunk.
    slot: Shape of a slot.
    tokens: `(seed, t, **choices)` -> inputs [t ...] of one request.
    token: The recurrence of `reference.py`.
    packed: `(*packed inputs, pool, chunks, implementation=)` -> out, pool.
    step: `(*inputs [b ...], pool, read, write, implementation=)` -> out, pool.
    core: `(*packed inputs, length, initial_state=, capture_at=)` -> Scanned.
    dtype: Of the inputs.
    pool_dtype: Of the pool.
    cases: Keyword arguments of `tokens` that are worth a test, by name.
  """

  chunk: int
  slot: tuple[int, ...]
  tokens: Callable[..., tuple[np.ndarray, ...]]
  token: Callable[..., Any]
  packed: Callable[..., Any]
  step: Callable[..., Any]
  core: Callable[..., Any]
  dtype: str = "float32"
  pool_dtype: str = "float32"
  cases: dict[str, dict[str, Any]] = dataclasses.field(
    default_factory=lambda: {"random": {}}
  )

  def initial_state(self, seed: int) -> np.ndarray:
    """A random state."""
    state = np.random.default_rng(1000 + seed).standard_normal(self.slot)
    return state.astype(jnp.dtype(self.pool_dtype))

  def reference(self, inputs: Any, state: np.ndarray) -> Any:
    """Outputs [t ...] and states [t+1 ...] in float64."""
    return reference.run(self.token, inputs, state)

  def empty_call(self, n: int, slots: int) -> tuple[Any, ...]:
    """Inputs, pool and chunks of a call in which no chunk is active."""
    inputs = [
      jnp.asarray(np.zeros((n, self.chunk, *x.shape[1:]), x.dtype))
      for x in self.tokens(0, 1)
    ]
    pool = np.zeros((slots, *self.slot), jnp.dtype(self.pool_dtype))
    return *inputs, jnp.asarray(pool), chunks_of([], n, self.chunk)


def matrix_state_cases(keys: tuple[str, ...], beta: bool) -> dict[str, Any]:
  """Every combination of keys, decays and strengths."""
  strengths = (0.0, 1.0, "gates") if beta else ("gates",)
  return {
    f"{kind}-{decay}-{strength}": {"keys": kind, "decay": decay}
    | ({"beta": strength} if beta else {})
    for kind in keys
    for decay in (*DECAYS, "mixed", "gates")
    for strength in strengths
  }


def unit(x: np.ndarray) -> np.ndarray:
  """Rows of unit length."""
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw_decays(random: np.random.Generator, decay: Any, *shape: int) -> Any:
  """Log decays: one number everywhere, a mixture, or like those of gates."""
  # exp(A) has the rounding of A: beta 0 leaves nothing else, so A stays modest.
  gates = -0.3 * np.logaddexp(0, 2 * random.standard_normal(shape))
  if decay == "mixed":
    gates = random.choice([*DECAYS, -0.1, -3.0], shape)
  elif decay != "gates":
    gates = np.full(shape, decay)
  return gates.astype(np.float32)


def matrix_tokens(
  sizes: tuple[int, int, int, int],
  names: tuple[str, ...],
  dtype: str,
  seed: int,
  t: int,
  *,
  keys: str = "random",
  decay: Any = "gates",
  beta: Any = "gates",
) -> tuple[np.ndarray, ...]:
  """q, k, v, then what `names` says: head_decay, channel_decay, beta."""
  h, hv, k, v = sizes
  random = np.random.default_rng(seed)

  def normal(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)

  key = normal(t, h, k)
  if keys == "repeated":
    key = np.broadcast_to(key[:1], key.shape)
  if keys == "correlated":
    key = 0.1 * key + normal(1, h, k)
  query, value = unit(normal(t, h, k)) * k**-0.5, normal(t, hv, v)
  wide = (query, unit(key), value)
  betas = 1 / (1 + np.exp(-2 * normal(t, hv)))
  gates = {
    "beta": betas if beta == "gates" else np.full((t, hv), beta),
    "head_decay": draw_decays(random, decay, t, hv),
    "channel_decay": draw_decays(random, decay, t, hv, k),
  }
  inputs = [np.asarray(jnp.asarray(x, jnp.dtype(dtype))) for x in wide]
  return *inputs, *(gates[name].astype(np.float32) for name in names)


def _matrix(
  packed: Callable[..., Any],
  step: Callable[..., Any],
  core: Callable[..., Any],
  token: Callable[..., Any],
  names: tuple[str, ...],
  sizes: tuple[int, int, int, int],
  dtype: str,
  chunk: int,
) -> Operation:
  _, hv, k, v = sizes
  return Operation(
    chunk=chunk,
    slot=(hv, k, v),
    tokens=functools.partial(matrix_tokens, sizes, names, dtype),
    token=token,
    packed=packed,
    step=step,
    core=core,
    dtype=dtype,
    cases=matrix_state_cases(
      ("random", "repeated", "correlated"), "beta" in names
    ),
  )


SMALL = (2, 4, 16, 24)
"""h, hv, k, v of the XLA tests."""


def gated_delta_rule_at(
  sizes: tuple[int, int, int, int] = SMALL,
  dtype: str = "float32",
  chunk: int = 64,
) -> Operation:
  """h, hv, k, v = sizes."""
  return _matrix(
    gated_delta_rule,
    gated_delta_rule_step,
    gated_delta_rule_core,
    reference.delta_rule_token,
    ("head_decay", "beta"),
    sizes,
    dtype,
    chunk,
  )


def kimi_delta_attention_at(
  sizes: tuple[int, int, int, int] = SMALL,
  dtype: str = "float32",
  chunk: int = 64,
) -> Operation:
  """h, hv, k, v = sizes."""
  return _matrix(
    kimi_delta_attention,
    kimi_delta_attention_step,
    kimi_delta_attention_core,
    reference.delta_rule_token,
    ("channel_decay", "beta"),
    sizes,
    dtype,
    chunk,
  )


def linear_attention_at(
  sizes: tuple[int, int, int, int] = SMALL,
  dtype: str = "float32",
  chunk: int = 64,
) -> Operation:
  """h, hv, k, v = sizes."""
  return _matrix(
    linear_attention,
    linear_attention_step,
    linear_attention_core,
    reference.linear_attention_token,
    ("head_decay",),
    sizes,
    dtype,
    chunk,
  )


def _decay_cases() -> dict[str, Any]:
  return {str(d): {"decay": d} for d in (*DECAYS, "mixed", "gates")}


def diagonal_scan_at(
  width: int = 24, dtype: str = "float32", chunk: int = 64
) -> Operation:
  """RG-LRU's form, of `width` channels."""

  def tokens(seed: int, t: int, *, decay: Any = "gates") -> Any:
    random = np.random.default_rng(seed)
    x = random.standard_normal((t, width), np.float32)
    decays = draw_decays(random, decay, t, width)
    return np.asarray(jnp.asarray(x, jnp.dtype(dtype))), decays

  return Operation(
    chunk=chunk,
    slot=(width,),
    tokens=tokens,
    token=reference.diagonal_token,
    packed=diagonal_scan,
    step=diagonal_scan_step,
    core=diagonal_scan_core,
    dtype=dtype,
    cases=_decay_cases(),
  )


def selective_scan_at(
  width: int = 24, states: int = 8, dtype: str = "float32", chunk: int = 64
) -> Operation:
  """Mamba's form, `states` numbers per channel."""
  rate = np.linspace(0.5, 2.0, width * states, dtype=np.float32)
  rate = rate.reshape(width, states)

  def tokens(seed: int, t: int, *, decay: Any = "gates") -> Any:
    random = np.random.default_rng(seed)
    shapes = ((t, width), (t, states), (t, states))
    drawn = (random.standard_normal(shape, np.float32) for shape in shapes)
    x, b, c = (np.asarray(jnp.asarray(u, jnp.dtype(dtype))) for u in drawn)
    return x, draw_decays(random, decay, t, width), b, c

  def packed(x, log_decay, b, c, pool, chunks, implementation=None):
    return diagonal_scan(
      x,
      log_decay,
      pool,
      chunks,
      rate=jnp.asarray(rate),
      b=b,
      c=c,
      implementation=implementation,
    )

  def step(x, log_decay, b, c, pool, read, write, implementation=None):
    return diagonal_scan_step(
      x,
      log_decay,
      pool,
      read,
      write,
      rate=jnp.asarray(rate),
      b=b,
      c=c,
      implementation=implementation,
    )

  def core(x, log_decay, b, c, length, **options):
    return diagonal_scan_core(
      x, log_decay, length, rate=jnp.asarray(rate), b=b, c=c, **options
    )

  return Operation(
    chunk=chunk,
    slot=(width, states),
    tokens=tokens,
    token=functools.partial(reference.selective_token, rate.astype(np.float64)),
    packed=packed,
    step=step,
    core=core,
    dtype=dtype,
    cases=_decay_cases(),
  )


def causal_conv1d_at(
  width: int = 12, window: int = 4, dtype: str = "float32", chunk: int = 16
) -> Operation:
  """A filter of `window` taps over `width` channels."""

  def values(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.asarray(jnp.asarray(x, jnp.dtype(dtype)))

  weight = values(100, window, width)

  def packed(x, pool, chunks, implementation=None):
    return causal_conv1d(
      x, jnp.asarray(weight), pool, chunks, implementation=implementation
    )

  def step(x, pool, read, write, implementation=None):
    return causal_conv1d_step(
      x,
      jnp.asarray(weight),
      pool,
      read,
      write,
      implementation=implementation,
    )

  def core(x, length, **options):
    return causal_conv1d_core(x, jnp.asarray(weight), length, **options)

  return Operation(
    chunk=chunk,
    slot=(window - 1, width),
    tokens=lambda seed, t: (values(seed, t, width),),
    token=functools.partial(
      reference.convolution_token, weight.astype(np.float64)
    ),
    packed=packed,
    step=step,
    core=core,
    dtype=dtype,
    pool_dtype=dtype,
  )


@functools.cache
def compiled(packed: Callable[..., Any], implementation: Any) -> Any:
  """One jitted program per operation and implementation."""
  return jax.jit(functools.partial(packed, implementation=implementation))


@functools.cache
def compiled_step(step: Callable[..., Any], implementation: Any = None) -> Any:
  """One jitted program per step and implementation, if one is chosen."""
  chosen = {} if implementation is None else {"implementation": implementation}
  return jax.jit(functools.partial(step, **chosen))
