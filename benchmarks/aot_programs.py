"""The programs of `benchmarks.aot`: every operation, and those of a model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.aot_models import MODEL_PROGRAMS
from benchmarks.aot_program import (
  CHANNELS,
  CHUNKS,
  HEADS,
  KEY_HEADS,
  LONG_TOKENS,
  MODEL_WIDTH,
  ROWS,
  STATES,
  TOKENS,
  VALUE_HEADS,
  WINDOW,
  Program,
  Shape,
)
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks
from sparse_prefix_jax.kernels.diagonal_scan import (
  diagonal_scan,
  diagonal_scan_step,
)
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule,
  gated_delta_rule_projected_step,
  gated_delta_rule_step,
)
from sparse_prefix_jax.kernels.implementations import Choice
from sparse_prefix_jax.kernels.kimi_delta_attention import (
  kimi_delta_attention,
  kimi_delta_attention_step,
)
from sparse_prefix_jax.kernels.lattice_attention import (
  latent_attention,
  latent_attention_step,
  lattice_attention,
  lattice_attention_step,
)
from sparse_prefix_jax.kernels.linear_attention import (
  linear_attention,
  linear_attention_step,
)
from sparse_prefix_jax.kernels.row_products import row_products


def _pools(*slot: int, dtype: Any, count: int = 1) -> Callable[[int], Any]:
  """`count` pools of slots of one shape."""

  def of(slots: int) -> tuple[Shape, ...]:
    return (jax.ShapeDtypeStruct((slots, *slot), dtype),) * count

  return of


def _float32(*shape: int) -> Shape:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _chunks() -> Chunks:
  return jax.eval_shape(lambda: Chunks(*jnp.zeros((5, CHUNKS), jnp.int32)))


def _packed(operation: Callable[..., Any], *inputs: Shape) -> Program:
  """An operation on states [s hv k v], inputs in its order."""

  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    *arrays, chunks = inputs
    out, pool = operation(*arrays, *pools, chunks, **options)
    return out, (pool,)

  slot = inputs[2].shape[2], inputs[0].shape[3], inputs[2].shape[3]
  pools = _pools(*slot, dtype=jnp.float32)
  return Program(run, (*inputs, _chunks()), pools)


def _mamba_2(width: int, dtype: Any) -> Program:
  """One key head for 48 value heads of 64, as Mamba-2 has them."""
  lead = CHUNKS, TOKENS
  key = jax.ShapeDtypeStruct((*lead, 1, width), dtype)
  value = jax.ShapeDtypeStruct((*lead, 48, 64), dtype)
  return _packed(linear_attention, key, key, value, _float32(*lead, 48))


def _heads(
  width: int, dtype: Any, tokens: int = TOKENS
) -> tuple[Shape, Shape, Shape]:
  """q, k and v."""
  lead = CHUNKS, tokens
  key = jax.ShapeDtypeStruct((*lead, HEADS, width), dtype)
  value = jax.ShapeDtypeStruct((*lead, VALUE_HEADS, width), dtype)
  return key, key, value


_GATE = _float32(CHUNKS, TOKENS, VALUE_HEADS)


def _delta(width: int, dtype: Any, tokens: int = TOKENS) -> Program:
  gate = _float32(CHUNKS, tokens, VALUE_HEADS)
  return _packed(gated_delta_rule, *_heads(width, dtype, tokens), gate, gate)


def _kimi(width: int, dtype: Any, tokens: int = TOKENS) -> Program:
  gate = _float32(CHUNKS, tokens, VALUE_HEADS)
  decay = _float32(*gate.shape, width)
  heads = _heads(width, dtype, tokens)
  return _packed(kimi_delta_attention, *heads, decay, gate)


def _linear(width: int, dtype: Any) -> Program:
  return _packed(linear_attention, *_heads(width, dtype), _GATE)


def _token(
  operation: Callable[..., Any],
  pools: Callable[[int], Any],
  *inputs: Shape,
  **options: Shape,
) -> Program:
  """A step of one token, inputs in its order, then what it takes by name."""

  def run(inputs: Any, pools: Any, implementation: Choice) -> Any:
    arrays, slots, options = inputs
    chosen = implementation
    if operation is causal_conv1d_step and implementation == "mosaic_tpu":
      chosen = None  # there is no kernel: what runs there is XLA's form
    out, pool = operation(
      *arrays, *pools, *slots, **options, implementation=chosen
    )
    return out, (pool,)

  slots = (jax.ShapeDtypeStruct((ROWS,), jnp.int32),) * 2
  return Program(run, (inputs, slots, options), pools)


def _matrix_step(
  width: int,
  dtype: Any,
  *,
  operation: Callable[..., Any],
  gates: Sequence[tuple[int, ...]] = ((), ()),
  value_width: int | None = None,
) -> Program:
  """A step of a recurrence on matrix states.

  Args:
    width: Of a key head.
    dtype: Of q, k and v.
    operation: On states [s hv k v].
    gates: What follows [b hv] in the shape of each.
    value_width: Of a value head; None for that of a key head.
  """
  values = value_width or width
  key = jax.ShapeDtypeStruct((ROWS, HEADS, width), dtype)
  value = jax.ShapeDtypeStruct((ROWS, VALUE_HEADS, values), dtype)
  each = (_float32(ROWS, VALUE_HEADS, *gate) for gate in gates)
  pools = _pools(VALUE_HEADS, width, values, dtype=jnp.float32)
  return _token(operation, pools, key, key, value, *each)


def _projected_step(width: int, dtype: Any) -> Program:
  """That of a model of 1,024 channels, which makes its gates itself."""
  mixed = _float32(ROWS, 2 * HEADS * width + VALUE_HEADS * width)
  x = jax.ShapeDtypeStruct((ROWS, MODEL_WIDTH), dtype)
  weight = jax.ShapeDtypeStruct((2 * VALUE_HEADS, MODEL_WIDTH), dtype)
  each = (_float32(VALUE_HEADS) for _ in range(2))
  operation = functools.partial(
    gated_delta_rule_projected_step,
    key_heads=HEADS,
    beta_scale=1.0,
    dtype=str(dtype),
    precision="highest",
  )
  pools = _pools(VALUE_HEADS, width, width, dtype=jnp.float32)
  return _token(operation, pools, mixed, x, weight, *each)


def _kimi_step(width: int, dtype: Any) -> Program:
  gates = (width,), ()
  return _matrix_step(
    width, dtype, operation=kimi_delta_attention_step, gates=gates
  )


def _convolution_step(width: int, dtype: Any) -> Program:
  x = jax.ShapeDtypeStruct((ROWS, CHANNELS), dtype)
  weight = jax.ShapeDtypeStruct((WINDOW, CHANNELS), dtype)
  pools = _pools(WINDOW - 1, CHANNELS, dtype=dtype)
  return _token(causal_conv1d_step, pools, x, weight)


def _scan_step(width: int, dtype: Any, selective: bool = False) -> Program:
  x = jax.ShapeDtypeStruct((ROWS, CHANNELS), dtype)
  given = x, _float32(*x.shape)
  if not selective:
    pools = _pools(CHANNELS, dtype=jnp.float32)
    return _token(diagonal_scan_step, pools, *given)
  b = jax.ShapeDtypeStruct((ROWS, STATES), dtype)
  pools = _pools(CHANNELS, STATES, dtype=jnp.float32)
  rate = _float32(CHANNELS, STATES)
  return _token(diagonal_scan_step, pools, *given, rate=rate, b=b, c=b)


def _convolution(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, weight, chunks = inputs
    out, pool = causal_conv1d(x, weight, pools[0], chunks, **options)
    return out, (pool,)

  x = jax.ShapeDtypeStruct((CHUNKS, TOKENS, CHANNELS), dtype)
  weight = jax.ShapeDtypeStruct((WINDOW, CHANNELS), dtype)
  pools = _pools(WINDOW - 1, CHANNELS, dtype=dtype)
  return Program(run, (x, weight, _chunks()), pools)


def _scan(width: int, dtype: Any, selective: bool = False) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, log_decay, chunks, extra = inputs
    options |= extra
    y, pool = diagonal_scan(x, log_decay, pools[0], chunks, **options)
    return y, (pool,)

  x = jax.ShapeDtypeStruct((CHUNKS, TOKENS, CHANNELS), dtype)
  inputs = x, _float32(*x.shape), _chunks()
  if not selective:
    return Program(run, (*inputs, {}), _pools(CHANNELS, dtype=jnp.float32))
  b = jax.ShapeDtypeStruct((CHUNKS, TOKENS, STATES), dtype)
  extra = {"rate": _float32(CHANNELS, STATES), "b": b, "c": b}
  pools = _pools(CHANNELS, STATES, dtype=jnp.float32)
  return Program(run, (*inputs, extra), pools)


def _attention(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    q, k, v, *plan = inputs
    out, *pools = lattice_attention(q, k, v, *pools, *plan, **options)
    return out, tuple(pools)

  q = jax.ShapeDtypeStruct((CHUNKS, TOKENS, VALUE_HEADS, width), dtype)
  k = jax.ShapeDtypeStruct((CHUNKS, TOKENS, KEY_HEADS, width), dtype)
  table = jax.ShapeDtypeStruct((CHUNKS, 64), jnp.int32)
  pools = _pools(TOKENS, KEY_HEADS, width, dtype=dtype, count=2)
  return Program(run, (q, k, k, _chunks(), table), pools)


def _attention_step(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    q, k, v, *rows = inputs
    out, *pools = lattice_attention_step(q, k, v, *pools, *rows, **options)
    return out, tuple(pools)

  q = jax.ShapeDtypeStruct((ROWS, 2 * VALUE_HEADS, width), dtype)
  k = jax.ShapeDtypeStruct((ROWS, KEY_HEADS, width), dtype)
  position = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
  active = jax.ShapeDtypeStruct((ROWS,), jnp.bool_)
  table = jax.ShapeDtypeStruct((ROWS, 128), jnp.int32)
  pools = _pools(TOKENS, KEY_HEADS, width, dtype=dtype, count=2)
  return Program(run, (q, k, k, position, active, table), pools)


def _latents(width: int, dtype: Any) -> Program:
  """The heads of Kimi Linear, whose values are all but 64 channels."""
  q = jax.ShapeDtypeStruct((CHUNKS, TOKENS, 2 * VALUE_HEADS, width), dtype)
  latent = jax.ShapeDtypeStruct((CHUNKS, TOKENS, 1, width), dtype)
  table = jax.ShapeDtypeStruct((CHUNKS, 64), jnp.int32)
  return _of_latents(latent_attention, q, latent, _chunks(), table)


def _latents_step(width: int, dtype: Any) -> Program:
  q = jax.ShapeDtypeStruct((ROWS, 2 * VALUE_HEADS, width), dtype)
  latent = jax.ShapeDtypeStruct((ROWS, 1, width), dtype)
  position = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
  active = jax.ShapeDtypeStruct((ROWS,), jnp.bool_)
  table = jax.ShapeDtypeStruct((ROWS, 128), jnp.int32)
  plan = position, active, table
  return _of_latents(latent_attention_step, q, latent, *plan)


def _of_latents(
  operation: Callable[..., Any], q: Shape, latent: Shape, *plan: Any
) -> Program:
  """An operation on one pool of latents, and what says where they lie."""
  width = latent.shape[-1]

  def run(inputs: Any, pools: Any, implementation: Choice) -> Any:
    q, latent, *plan = inputs
    # There is no kernel for GPUs: what runs there is XLA's form.
    chosen = None if implementation == "mosaic_gpu" else implementation
    out, pool = operation(
      q,
      latent,
      *pools,
      *plan,
      value_width=width - 64,
      implementation=chosen,
    )
    return out, (pool,)

  pools = _pools(TOKENS, 1, width, dtype=latent.dtype)
  return Program(run, (q, latent, *plan), pools)


def _row_products(width: int, dtype: Any) -> Program:
  """Products of the layer group's SwiGLU: into its width, and out of it."""
  outputs = (3584, 3584) if width == MODEL_WIDTH else (MODEL_WIDTH,)

  def run(inputs: Any, pools: Any, implementation: Choice) -> Any:
    del implementation  # one GPU has a kernel, the others have XLA's form
    x, *weights = inputs
    return row_products(x, weights, precision="highest"), pools

  x = jax.ShapeDtypeStruct((ROWS, width), dtype)
  weights = (jax.ShapeDtypeStruct((o, width), dtype) for o in outputs)
  return Program(run, (x, *weights), lambda slots: ())


_linear_step = functools.partial(
  _matrix_step, operation=linear_attention_step, gates=((),)
)

PROGRAMS: Mapping[str, tuple[Callable[[int, Any], Program], Sequence[int]]] = {
  "gated_delta_rule": (_delta, (64, 128, 256)),
  "gated_delta_rule_long": (
    functools.partial(_delta, tokens=LONG_TOKENS),
    (128,),
  ),
  "linear_attention": (_linear, (64, 128, 256)),
  "mamba_2": (_mamba_2, (128,)),
  "kimi_delta_attention": (_kimi, (64, 128, 256)),
  "kimi_delta_attention_long": (
    functools.partial(_kimi, tokens=LONG_TOKENS),
    (128,),
  ),
  "causal_conv1d": (_convolution, (0,)),
  "diagonal_scan": (_scan, (0,)),
  "selective_scan": (functools.partial(_scan, selective=True), (0,)),
  "lattice_attention": (_attention, (64, 128, 256)),
  "gated_delta_rule_step": (
    functools.partial(_matrix_step, operation=gated_delta_rule_step),
    (64, 128, 256),
  ),
  "gated_delta_rule_projected_step": (_projected_step, (64, 128, 256)),
  "kimi_delta_attention_step": (_kimi_step, (64, 128, 256)),
  "linear_attention_step": (_linear_step, (64, 128, 256)),
  "mamba_2_step": (functools.partial(_linear_step, value_width=64), (128,)),
  "causal_conv1d_step": (_convolution_step, (0,)),
  "diagonal_scan_step": (_scan_step, (0,)),
  "selective_scan_step": (
    functools.partial(_scan_step, selective=True),
    (0,),
  ),
  "lattice_attention_step": (_attention_step, (64, 128, 256)),
  "row_products": (_row_products, (MODEL_WIDTH, 3584)),
  "latent_attention": (_latents, (576,)),
  "latent_attention_step": (_latents_step, (576,)),
  **MODEL_PROGRAMS,
}
"""How the program of each operation is made, and at which widths."""
