"""The compiled programs: prefill, decode, head. Shapes fixed, work is data."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.models.decoder import HybridDecoder, Pools


class Group(NamedTuple):
  """Input of one prefill program: k packed chunks, k a rung of the ladder.

  Attributes:
    tokens: Ids. [k c]
    chunks: What each chunk reads, writes and holds. [k]
    page_table: Pages of the requests in the group. [k pages]
  """

  tokens: at.TokenChunks
  chunks: Chunks
  page_table: at.PageTable


class Step(NamedTuple):
  """Input of the decode program: one token of `decode_rows` sequences.

  Attributes:
    tokens: Ids. [b]
    rows: What each row reads and writes. [b]
    page_table: Pages of each sequence. [b pages]
  """

  tokens: Int32[Array, "b"]
  rows: Rows
  page_table: at.PageTable


def _prefill_group(
  model: HybridDecoder, pools: Pools, group: Group
) -> tuple[Float[Array, "k c d"], Pools]:
  return model(group.tokens, pools, group.chunks, group.page_table)


def _decode_step(
  model: HybridDecoder, pools: Pools, step: Step
) -> tuple[Float[Array, "b d"], Pools]:
  return model.step(step.tokens, pools, step.rows, step.page_table)


def _gather_rows(
  hidden: Float[Array, "*rows d"], index: Int32[Array, "head_rows"]
) -> at.Hidden:
  return hidden.reshape(-1, hidden.shape[-1])[index]


def _head(model: HybridDecoder, hidden: at.Hidden) -> at.Logits:
  return model.head(hidden)


prefill_group = jax.jit(_prefill_group, donate_argnames=("pools",))
"""k packed chunks; pools are donated. One compilation per rung."""
decode_step = jax.jit(_decode_step, donate_argnames=("pools",))
"""One token of `decode_rows` sequences; pools are donated."""
gather_rows = jax.jit(_gather_rows)
"""The rows of a group that the head is asked for."""
head = jax.jit(_head)
"""Logits of `head_rows` rows."""
