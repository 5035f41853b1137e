"""The programs of `benchmarks.aot` that are those of a model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.aot_program import (
  CHUNKS,
  GROUP_CHUNKS,
  HEADS,
  KEY_HEADS,
  ROWS,
  TOKENS,
  VALUE_HEADS,
  Program,
)
from sparse_prefix_jax import HybridDecoder, ModelConfig, preset
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.models import hybrid
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.runtime.in_place import PoolProgram
from sparse_prefix_jax.runtime.pools import copy_sequence


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
    key_heads=HEADS,
    value_heads=VALUE_HEADS,
    key_width=width,
    value_width=width,
    heads=VALUE_HEADS,
    kv_heads=KEY_HEADS,
    head_width=width,
    numerics=Numerics(dtype=str(dtype), ladder=(CHUNKS,), max_length=4096),
  )


def _layer_group(
  width: int, dtype: Any, chunks: int = GROUP_CHUNKS
) -> ModelConfig:
  """The layer group of Qwen3.5-0.8B, whose heads have the width."""
  del width  # of its heads of attention
  group = preset("qwen3_5_0_8b_group")
  return group.replace(dtype=str(dtype), decode_rows=ROWS, ladder=(chunks,))


def _kimi_linear(width: int, dtype: Any) -> ModelConfig:
  """A layer of Kimi Linear with states, and one with latents, both dense."""
  del width  # of its latents
  whole = preset("kimi_linear_48b_a3b")
  delta, dense = whole.branches[:2]
  latent = next(x for x in whole.branches if x.sub.kind == "latent_attention")
  return whole.replace(
    vocab_size=1024,
    branches=(delta, dense, latent, dense),
    dtype=str(dtype),
    decode_rows=ROWS,
    ladder=(CHUNKS,),
    max_length=4096,
  )


def _prefill(model: programs.FrozenModel, pools: Any) -> tuple[Any, ...]:
  (n,) = model.config.numerics.ladder

  def group() -> programs.Group:
    chunks, table = Chunks(*_int32(5, n)), _table(model, n)
    return programs.Group(_int32(n, TOKENS), chunks, table)

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
  return _int32(rows, model.config.numerics.max_length // TOKENS)


_MODEL: dict[str, tuple[PoolProgram, Callable[..., tuple[Any, ...]]]] = {
  "model_prefill": (programs.prefill_group, _prefill),
  "model_decode": (programs.decode_step, _decode),
  "model_fork": (copy_sequence, _fork),
}


def layer_group_prefill(dtype: Any, chunks: int) -> Program:
  """The prefill of the layer group of Qwen3.5-0.8B.

  Args:
    dtype: Of its weights.
    chunks: Of a program, a rung of the ladder.
  """
  program, arguments = _MODEL["model_prefill"]
  configured = functools.partial(_layer_group, chunks=chunks)
  return _model(
    0, dtype, program=program, arguments=arguments, configured=configured
  )


MODEL_PROGRAMS: Mapping[
  str, tuple[Callable[[int, Any], Program], Sequence[int]]
] = {
  name: (functools.partial(_model, program=x, arguments=arguments), (64, 128))
  for name, (x, arguments) in _MODEL.items()
} | {
  f"{model}_{name}": (
    functools.partial(
      _model, program=x, arguments=arguments, configured=configured
    ),
    (width,),
  )
  for model, configured, width in (
    ("layer_group", _layer_group, 256),
    ("kimi_linear", _kimi_linear, 576),
  )
  for name, (x, arguments) in (
    ("prefill", _MODEL["model_prefill"]),
    ("decode", _MODEL["model_decode"]),
  )
}
"""How the program of each is made, and at which widths of its heads."""
