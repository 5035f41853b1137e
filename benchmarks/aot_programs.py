"""The programs of `benchmarks.aot`: every operation, and those of a model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from sparse_prefix_jax import HybridDecoder, ModelConfig, preset
from sparse_prefix_jax.kernels.causal_conv1d import (
  causal_conv1d,
  causal_conv1d_step,
)
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.kernels.diagonal_scan import (
  diagonal_scan,
  diagonal_scan_step,
)
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule,
  gated_delta_rule_step,
)
from sparse_prefix_jax.kernels.implementations import Choice
from sparse_prefix_jax.kernels.kimi_delta_attention import (
  kimi_delta_attention,
  kimi_delta_attention_step,
)
from sparse_prefix_jax.kernels.lattice_attention import (
  lattice_attention,
  lattice_attention_step,
)
from sparse_prefix_jax.kernels.linear_attention import (
  linear_attention,
  linear_attention_step,
)
from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.models import hybrid
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.in_place import PoolProgram
from sparse_prefix_jax.runtime.pools import copy_sequence

Shape: TypeAlias = jax.ShapeDtypeStruct

_CHUNKS, _TOKENS, _HEADS, _VALUE_HEADS = 8, 64, 4, 8
_CHANNELS, _STATES, _WINDOW, _KEY_HEADS = 2048, 16, 4, 2
_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled: `run(inputs, pools, implementation=)`, pools donated.

  Attributes:
    run: The operation.
    inputs: Tree of shapes of what it reads.
    pools: Number of slots -> tree of shapes of the pools.
    compiled: One of the library's own programs, whose arguments `run` gives;
      None compiles `run` itself.
    pool_bytes: Of all pools: so many that no fast memory hides a copy of one.
  """

  run: Callable[..., Any]
  inputs: Any
  pools: Callable[[int], Any]
  compiled: PoolProgram | None = None
  pool_bytes: int = 2**28


def _pools(*slot: int, dtype: Any, count: int = 1) -> Callable[[int], Any]:
  """`count` pools of slots of one shape."""

  def of(slots: int) -> tuple[Shape, ...]:
    return (jax.ShapeDtypeStruct((slots, *slot), dtype),) * count

  return of


def _float32(*shape: int) -> Shape:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _chunks() -> Chunks:
  return jax.eval_shape(lambda: Chunks(*jnp.zeros((5, _CHUNKS), jnp.int32)))


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
  lead = _CHUNKS, _TOKENS
  key = jax.ShapeDtypeStruct((*lead, 1, width), dtype)
  value = jax.ShapeDtypeStruct((*lead, 48, 64), dtype)
  return _packed(linear_attention, key, key, value, _float32(*lead, 48))


def _heads(width: int, dtype: Any) -> tuple[Shape, Shape, Shape]:
  """q, k and v."""
  lead = _CHUNKS, _TOKENS
  key = jax.ShapeDtypeStruct((*lead, _HEADS, width), dtype)
  value = jax.ShapeDtypeStruct((*lead, _VALUE_HEADS, width), dtype)
  return key, key, value


_GATE = _float32(_CHUNKS, _TOKENS, _VALUE_HEADS)


def _delta(width: int, dtype: Any) -> Program:
  return _packed(gated_delta_rule, *_heads(width, dtype), _GATE, _GATE)


def _kimi(width: int, dtype: Any) -> Program:
  decay = _float32(*_GATE.shape, width)
  return _packed(kimi_delta_attention, *_heads(width, dtype), decay, _GATE)


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
    # There is no kernel for TPU: what runs there is XLA's form.
    chosen = None if implementation == "mosaic_tpu" else implementation
    out, pool = operation(
      *(*arrays, *pools, *slots), **options, implementation=chosen
    )
    return out, (pool,)

  slots = (jax.ShapeDtypeStruct((_ROWS,), jnp.int32),) * 2
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
  key = jax.ShapeDtypeStruct((_ROWS, _HEADS, width), dtype)
  value = jax.ShapeDtypeStruct((_ROWS, _VALUE_HEADS, values), dtype)
  each = (_float32(_ROWS, _VALUE_HEADS, *gate) for gate in gates)
  pools = _pools(_VALUE_HEADS, width, values, dtype=jnp.float32)
  return _token(operation, pools, key, key, value, *each)


def _kimi_step(width: int, dtype: Any) -> Program:
  gates = (width,), ()
  return _matrix_step(
    width, dtype, operation=kimi_delta_attention_step, gates=gates
  )


def _convolution_step(width: int, dtype: Any) -> Program:
  x = jax.ShapeDtypeStruct((_ROWS, _CHANNELS), dtype)
  weight = jax.ShapeDtypeStruct((_WINDOW, _CHANNELS), dtype)
  pools = _pools(_WINDOW - 1, _CHANNELS, dtype=dtype)
  return _token(causal_conv1d_step, pools, x, weight)


def _scan_step(width: int, dtype: Any, selective: bool = False) -> Program:
  x = jax.ShapeDtypeStruct((_ROWS, _CHANNELS), dtype)
  given = x, _float32(*x.shape)
  if not selective:
    pools = _pools(_CHANNELS, dtype=jnp.float32)
    return _token(diagonal_scan_step, pools, *given)
  b = jax.ShapeDtypeStruct((_ROWS, _STATES), dtype)
  pools = _pools(_CHANNELS, _STATES, dtype=jnp.float32)
  rate = _float32(_CHANNELS, _STATES)
  return _token(diagonal_scan_step, pools, *given, rate=rate, b=b, c=b)


def _convolution(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, weight, chunks = inputs
    out, pool = causal_conv1d(x, weight, pools[0], chunks, **options)
    return out, (pool,)

  x = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _CHANNELS), dtype)
  weight = jax.ShapeDtypeStruct((_WINDOW, _CHANNELS), dtype)
  pools = _pools(_WINDOW - 1, _CHANNELS, dtype=dtype)
  return Program(run, (x, weight, _chunks()), pools)


def _scan(width: int, dtype: Any, selective: bool = False) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    x, log_decay, chunks, extra = inputs
    options |= extra
    y, pool = diagonal_scan(x, log_decay, pools[0], chunks, **options)
    return y, (pool,)

  x = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _CHANNELS), dtype)
  inputs = x, _float32(*x.shape), _chunks()
  if not selective:
    return Program(run, (*inputs, {}), _pools(_CHANNELS, dtype=jnp.float32))
  b = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _STATES), dtype)
  extra = {"rate": _float32(_CHANNELS, _STATES), "b": b, "c": b}
  pools = _pools(_CHANNELS, _STATES, dtype=jnp.float32)
  return Program(run, (*inputs, extra), pools)


def _attention(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, **options: Any) -> Any:
    q, k, v, *plan = inputs
    out, *pools = lattice_attention(q, k, v, *pools, *plan, **options)
    return out, tuple(pools)

  q = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _VALUE_HEADS, width), dtype)
  k = jax.ShapeDtypeStruct((_CHUNKS, _TOKENS, _KEY_HEADS, width), dtype)
  table = jax.ShapeDtypeStruct((_CHUNKS, 64), jnp.int32)
  pools = _pools(_TOKENS, _KEY_HEADS, width, dtype=dtype, count=2)
  return Program(run, (q, k, k, _chunks(), table), pools)


def _attention_step(width: int, dtype: Any) -> Program:
  def run(inputs: Any, pools: Any, implementation: Choice) -> Any:
    q, k, v, *rows = inputs
    # There is no kernel for TPU: what runs there is XLA's form.
    chosen = None if implementation == "mosaic_tpu" else implementation
    out, *pools = lattice_attention_step(
      *(q, k, v, *pools, *rows), implementation=chosen
    )
    return out, tuple(pools)

  q = jax.ShapeDtypeStruct((_ROWS, 2 * _VALUE_HEADS, width), dtype)
  k = jax.ShapeDtypeStruct((_ROWS, _KEY_HEADS, width), dtype)
  position = jax.ShapeDtypeStruct((_ROWS,), jnp.int32)
  active = jax.ShapeDtypeStruct((_ROWS,), jnp.bool_)
  table = jax.ShapeDtypeStruct((_ROWS, 128), jnp.int32)
  pools = _pools(_TOKENS, _KEY_HEADS, width, dtype=dtype, count=2)
  return Program(run, (q, k, k, position, active, table), pools)


def _model(
  width: int,
  dtype: Any,
  *,
  program: PoolProgram,
  arguments: Callable[..., tuple[Any, ...]],
  configured: Callable[[int, Any], ModelConfig] | None = None,
) -> Program:
  """A program of a model of three Gated DeltaNet layers and one of attention.

  Args:
    width: Of its heads.
    dtype: Of its weights.
    program: Compiled as it is, with the pools that the library would make.
    arguments: `(model, pools)` -> those of the program.
    configured: `(width, dtype)` -> the model; None makes a small one.
  """
  config = (configured or _small_model)(width, dtype)

  def model() -> HybridDecoder:
    return HybridDecoder(config, rngs=nnx.Rngs(0))

  def run(leaves: Any, pools: Any, implementation: str) -> tuple[Any, ...]:
    chosen = config.replace(implementation=implementation)
    return arguments(programs.FrozenModel(leaves, chosen), pools)

  def pools(slots: int) -> Any:
    return jax.eval_shape(lambda: model().init_pools(slots=slots, pages=slots))

  leaves = jax.eval_shape(lambda: programs.freeze(model()).leaves)
  return Program(run, leaves, pools, compiled=program, pool_bytes=2**31)


def _small_model(width: int, dtype: Any) -> ModelConfig:
  """Three Gated DeltaNet layers and one of attention, narrow."""
  return hybrid(
    vocab_size=1024,
    width=512,
    hidden=1024,
    layer_types=(*("gated_delta_net",) * 3, "attention"),
    key_heads=_HEADS,
    value_heads=_VALUE_HEADS,
    key_width=width,
    value_width=width,
    heads=_VALUE_HEADS,
    kv_heads=_KEY_HEADS,
    head_width=width,
    numerics=Numerics(dtype=str(dtype), ladder=(_CHUNKS,), max_length=4096),
  )


def _layer_group(width: int, dtype: Any) -> ModelConfig:
  """The layer group of Qwen3.5-0.8B, whose heads have the width, 16 rows."""
  del width  # of its heads of attention
  group = preset("qwen3_5_0_8b_group")
  return group.replace(dtype=str(dtype), decode_rows=_ROWS)


def _prefill(model: programs.FrozenModel, pools: Any) -> tuple[Any, ...]:
  def group() -> programs.Group:
    chunks, table = Chunks(*_int32(5, _CHUNKS)), _table(model, _CHUNKS)
    return programs.Group(_int32(_CHUNKS, _TOKENS), chunks, table)

  return model, pools, jax.eval_shape(group)


def _decode(model: programs.FrozenModel, pools: Any) -> tuple[Any, ...]:
  b = model.config.numerics.decode_rows

  def one() -> programs.Step:
    rows = Rows(*_int32(3, b), active=jnp.zeros(b, jnp.bool_))
    return programs.Step(_int32(b), rows, _table(model, b))

  return model, pools, jax.eval_shape(one)


def _fork(model: programs.FrozenModel, pools: Any) -> tuple[Any, ...]:
  del model  # nothing is computed
  slots, page = jax.eval_shape(lambda: (_int32(2), _int32()))
  return pools, (slots, slots), (page, page)


def _int32(*shape: int) -> jax.Array:
  return jnp.zeros(shape, jnp.int32)


def _table(model: programs.FrozenModel, rows: int) -> jax.Array:
  return _int32(rows, model.config.numerics.max_length // _TOKENS)


_linear_step = functools.partial(
  _matrix_step, operation=linear_attention_step, gates=((),)
)

_MODEL: dict[str, tuple[PoolProgram, Callable[..., tuple[Any, ...]]]] = {
  "model_prefill": (programs.prefill_group, _prefill),
  "model_decode": (programs.decode_step, _decode),
  "model_fork": (copy_sequence, _fork),
}

PROGRAMS: Mapping[str, tuple[Callable[[int, Any], Program], Sequence[int]]] = (
  {
    "gated_delta_rule": (_delta, (64, 128, 256)),
    "linear_attention": (_linear, (64, 128, 256)),
    "mamba_2": (_mamba_2, (128,)),
    "kimi_delta_attention": (_kimi, (64, 128, 256)),
    "causal_conv1d": (_convolution, (0,)),
    "diagonal_scan": (_scan, (0,)),
    "selective_scan": (functools.partial(_scan, selective=True), (0,)),
    "lattice_attention": (_attention, (64, 128, 256)),
    "gated_delta_rule_step": (
      functools.partial(_matrix_step, operation=gated_delta_rule_step),
      (64, 128, 256),
    ),
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
  }
  | {
    name: (functools.partial(_model, program=x, arguments=arguments), (64, 128))
    for name, (x, arguments) in _MODEL.items()
  }
  | {
    "layer_group_decode": (
      functools.partial(
        _model,
        program=programs.decode_step,
        arguments=_decode,
        configured=_layer_group,
      ),
      (256,),
    ),
  }
)
"""How the program of each operation is made, and at which widths."""
