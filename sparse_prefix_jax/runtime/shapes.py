"""The shapes that the compiled programs take, to lower them without arrays.

A program is compiled from shapes alone. So one can be made, or measured, for a
model that nobody has loaded and for pools that nobody has allocated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder, Pools
from sparse_prefix_jax.runtime.in_place import kernel_format
from sparse_prefix_jax.runtime.plan import page_table
from sparse_prefix_jax.runtime.programs import (
  FrozenModel,
  Group,
  Step,
  freeze,
)


def model_shapes(config: ModelConfig) -> FrozenModel:
  """The parameters of a model as shapes, in the form that programs take.

  Args:
    config: The model's configuration.

  Returns:
    A frozen model whose leaves are `jax.ShapeDtypeStruct`.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> max(leaf.shape for leaf in model_shapes(preset("tiny")).leaves)
    (512, 64)
  """
  return jax.eval_shape(lambda: freeze(_model(config)))


def pool_shapes(config: ModelConfig, *, slots: int, pages: int) -> Pools:
  """The pools of a model as shapes.

  Args:
    config: The model's configuration.
    slots: How many state checkpoints the pools hold.
    pages: How many pages of keys and values they hold.

  Returns:
    What `allocate` would make, in the memory order that it would have on the
    default device.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> pools = pool_shapes(preset("tiny"), slots=2, pages=3)
    >>> pools[2].pages.keys.shape
    (3, 64, 2, 32)
  """
  pools = jax.eval_shape(
    lambda: _model(config).init_pools(slots=slots, pages=pages)
  )
  return jax.tree.map(_in_order, pools) if _on_tpu() else pools


def group_shapes(config: ModelConfig, rung: int) -> Group:
  """The input of the prefill program of one rung.

  Args:
    config: Gives the length of a chunk and of the longest sequence.
    rung: How many packed chunks the program takes.

  Returns:
    A `Group` of shapes.
  """

  def group() -> Group:
    chunks = Chunks(*_zeros(len(Chunks._fields), rung))
    table = _zeros(rung, _table_width(config))
    return Group(_zeros(rung, config.numerics.chunk), chunks, table)

  return jax.eval_shape(group)


def step_shapes(config: ModelConfig) -> Step:
  """The input of the decode program.

  Args:
    config: Gives the rows of the program and the longest sequence.

  Returns:
    A `Step` of shapes.
  """
  b = config.numerics.decode_rows

  def step() -> Step:
    rows = Rows(*_zeros(3, b), active=jnp.zeros(b, jnp.bool_))
    return Step(_zeros(b), rows, _zeros(b, _table_width(config)))

  return jax.eval_shape(step)


def hidden_shape(config: ModelConfig) -> jax.ShapeDtypeStruct:
  """The input of the head, in the larger of its two programs."""
  numerics = config.numerics
  shape = (max(numerics.head_rows, numerics.decode_rows), config.width)
  return jax.ShapeDtypeStruct(shape, config.numerics.dtype)


def fork_shapes() -> tuple[Any, Any]:
  """The inputs of `copy_sequence`: two slots and one page, from and to."""
  slots, page = jax.eval_shape(lambda: (_zeros(2), _zeros()))
  return (slots, slots), (page, page)


def _model(config: ModelConfig) -> HybridDecoder:
  return HybridDecoder(config, rngs=nnx.Rngs(0))


def _zeros(*shape: int) -> jax.Array:
  return jnp.zeros(shape, jnp.int32)


def _table_width(config: ModelConfig) -> int:
  """The columns of every page table: pages of the longest sequence."""
  return page_table(config, []).shape[1]


def _on_tpu() -> bool:
  return jax.default_backend() == "tpu"


def _in_order(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """A pool in the order that kernels take, where XLA would choose another."""
  place = SingleDeviceSharding(jax.devices()[0])
  order = kernel_format(x.shape, x.dtype, place) or place
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=order)
