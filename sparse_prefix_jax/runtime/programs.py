"""The compiled programs: prefill, decode, head. Shapes fixed, work is data."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.undivided import check_undivided
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder, Pools
from sparse_prefix_jax.runtime.compiling import Program
from sparse_prefix_jax.runtime.in_place import PoolProgram


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("leaves",),
  meta_fields=("config",),
)
@dataclasses.dataclass(frozen=True)
class FrozenModel:
  """A model flattened once, for programs that are called for every token.

  Flattening a module walks all its attributes in Python; this is a tuple.
  Models of one configuration share their compiled programs.

  Attributes:
    leaves: Parameters, in the order of `jax.tree.leaves`: arrays, or what
      stands for them while a program is lowered.
    config: The model's configuration.
  """

  leaves: tuple[Any, ...]
  config: ModelConfig

  def thaw(self) -> HybridDecoder:
    """Makes the module again, around the same parameters."""
    return jax.tree.unflatten(_structure(self.config), self.leaves)


def freeze(model: HybridDecoder) -> FrozenModel:
  """Flattens the parameters of a model as they are now.

  Raises:
    ValueError: If devices hold parts of them.
  """
  leaves = tuple(jax.tree.leaves(model))
  check_undivided(leaves)
  return FrozenModel(leaves, model.config)


@functools.lru_cache(maxsize=16)
def _structure(config: ModelConfig) -> Any:
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  return jax.tree.structure(model)


class Group(NamedTuple):
  """The input of one prefill program: k packed chunks, k a rung of the ladder.

  Attributes:
    tokens: The token ids. [k c]
    chunks: What each chunk reads, writes and holds. [k]
    page_table: Pages of the requests in the group. [k pages]
  """

  tokens: at.TokenChunks
  chunks: Chunks
  page_table: at.PageTable


class Step(NamedTuple):
  """The input of the decode program: one token of `decode_rows` sequences.

  Attributes:
    tokens: The token ids. [b]
    rows: What each row reads and writes. [b]
    page_table: Pages of each sequence. [b pages]
  """

  tokens: Int32[Array, "b"]
  rows: Rows
  page_table: at.PageTable


def _prefill_group(
  model: FrozenModel, pools: Pools, group: Group
) -> tuple[Float[Array, "k c d"], Pools]:
  return model.thaw()(group.tokens, pools, group.chunks, group.page_table)


def _decode_step(
  model: FrozenModel, pools: Pools, step: Step
) -> tuple[Float[Array, "b d"], Pools]:
  return model.thaw().step(step.tokens, pools, step.rows, step.page_table)


def _gather_rows(
  hidden: Float[Array, "*rows d"], index: Int32[Array, "head_rows"]
) -> at.Hidden:
  return hidden.reshape(-1, hidden.shape[-1])[index]


def _head(model: FrozenModel, hidden: at.Hidden) -> at.Logits:
  return model.thaw().head(hidden)


def _with_pools(pools: Any) -> tuple[None, Any]:
  return None, pools


prefill_group = PoolProgram(_prefill_group, _with_pools)
"""Runs k packed chunks; pools are donated. It is compiled once per rung."""
decode_step = PoolProgram(_decode_step, _with_pools)
"""Runs one token of `decode_rows` sequences; pools are donated."""
gather_rows = Program(_gather_rows)
"""Gathers the rows of a group that the head is asked for."""
head = Program(_head)
"""Computes the logits of `head_rows` rows, or of `decode_rows` after a step."""
