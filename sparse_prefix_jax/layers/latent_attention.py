"""Multi-head latent attention: pages keep one latent that all heads share."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.lattice_attention import (
  latent_attention,
  latent_attention_step,
)
from sparse_prefix_jax.layers.choices import check_values
from sparse_prefix_jax.layers.dense import dense, dense_each, kernel
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import Norm, scaled_rms_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
  """Static choices of a layer of multi-head latent attention.

  Positions are not told apart: nothing is rotated.

  Attributes:
    heads: Query heads.
    latent_width: Channels that keys and values are made of.
    key_width: Channels of a key that are made of the latent, in every head.
    shared_width: Channels of a key that all heads share.
    value_width: Width v of a value.
    eps: What the norm of the latent adds to the mean square.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = LatentAttentionConfig(
    ...   heads=4, latent_width=48, key_width=32, shared_width=16,
    ...   value_width=32,
    ... )
    >>> config.keeps(64, Numerics()).pages.latents.shape
    (64, 1, 64)
  """

  kind: ClassVar[str] = "latent_attention"

  heads: int
  latent_width: int
  key_width: int
  shared_width: int
  value_width: int
  eps: float = 1e-6

  def __post_init__(self) -> None:
    """Refuses counts out of their range."""
    check_values(self)

  @property
  def kept_width(self) -> int:
    """Channels that are kept of a token."""
    return self.latent_width + self.shared_width

  @property
  def query_width(self) -> int:
    """Channels of a query head as it is projected."""
    return self.key_width + self.shared_width

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "LatentAttention":
    """Makes the layer, with new parameters."""
    return LatentAttention(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps the latents of a chunk on each page, and no state.

    Raises:
      ValueError: If pages should hold another type than activations have.
    """
    del width
    if numerics.page_dtype is not None:
      raise ValueError(
        f"page_dtype is {numerics.page_dtype!r}; with latent attention it must "
        "be None: a latent is kept as it is."
      )
    shape = numerics.chunk, 1, self.kept_width
    page = jax.ShapeDtypeStruct(shape, jnp.dtype(numerics.dtype))
    return BranchPools(pages=Latents(page))

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts projections, their absorbed parts, and products of latents."""
    del numerics
    wide = 2 * width * (self.heads * self.query_width + self.kept_width)
    absorbed = 2 * self.latent_width * (self.key_width + self.value_width)
    back = 2 * width * self.value_width
    pair = 2 * (self.kept_width + self.latent_width)
    token = wide + self.heads * (absorbed + back)
    return Flops(token=token, pair=self.heads * pair)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of queries and of latents; heads run by chunks."""
    return {
      "heads * (key_width + shared_width)": self.heads * self.query_width,
      "latent_width + shared_width": self.kept_width,
    }


class Latents(NamedTuple):
  """What latent attention keeps of the tokens of a page.

  Attributes:
    latents: The normalised latent of every token, then the channels that the
      keys of all heads share. [p c 1 k]
  """

  latents: at.PagePool | jax.ShapeDtypeStruct


class LatentAttention(ExplicitModule):
  """W_o softmax(q K^T / sqrt(k)) V, K and V from one latent of each token.

  With l_t = norm(W_l x_t) and r_t = W_r x_t, a head has the key [W_k l_t, r_t]
  and the value W_v l_t. Only l and r are kept: W_k is absorbed into queries and
  W_v into outputs, so that heads attend to latents,

      q K^T = [W_k^T q_k, q_r] [l, r]^T,   softmax(.) V = (softmax(.) l) W_v^T.

  (Multi-head latent attention, DeepSeek-V2, arXiv 2405.04434.)

  Attributes:
    in_query: The weight of queries.
    in_latent: The weights W_l and W_r, one below the other.
    latent_norm: A factor per channel of a latent.
    key_up: W_k of every head. [h k latent]
    value_up: W_v of every head. [h v latent]
    out: The weight that leads back.
  """

  def __init__(
    self,
    config: LatentAttentionConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    self.config, self.numerics = config, numerics
    self.in_query = kernel(rngs, width, c.heads * c.query_width, dtype)
    self.in_latent = kernel(rngs, width, c.kept_width, dtype)
    norm = Norm(centred=False, eps=c.eps)
    self.latent_norm = norm.weight(c.latent_width, dtype)
    init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
    self.key_up, self.value_up = (
      nnx.Param(
        init(rngs.params(), (c.heads, rows, c.latent_width), jnp.dtype(dtype))
      )
      for rows in (c.key_width, c.value_width)
    )
    self.out = kernel(rngs, c.heads * c.value_width, width, dtype)

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Writes the pages of n packed chunks, then attends to all before them.

    Args:
      x: Normalised inputs.
      pools: The pages, donated: the result takes their memory.
      chunks: Position, length and page-table row of each chunk.
      page_table: Pages of each request, in order.

    Returns:
      The outputs, and the pools with the chunks' pages.
    """
    projected = self._project(x)
    with jax.named_scope("heads"):
      q, latent = map_rows(self._absorbed, *projected)
    with jax.named_scope("attention"):
      out, pages = latent_attention(
        q,
        latent,
        pools.pages.latents,
        chunks,
        page_table,
        value_width=self.config.latent_width,
        precision=self.numerics.product_precision,
        implementation=_there_is(self.numerics.forced_implementation),
      )
    with jax.named_scope("heads"):
      out = map_rows(self._values, out)
    y = dense(out, self.out[...], self.numerics)
    return y, pools._replace(pages=Latents(pages))

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of each of b running sequences through the layer.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: The pages, donated: the result takes their memory.
      rows: The position of each row, and whether a sequence holds it.
      page_table: Pages of each sequence, in order.

    Returns:
      The outputs, and the pools with the tokens' latents.
    """
    q, latent = self._absorbed(*self._project(x))
    out, pages = latent_attention_step(
      q,
      latent,
      pools.pages.latents,
      rows.position,
      rows.active,
      page_table,
      value_width=self.config.latent_width,
      precision=self.numerics.product_precision,
      implementation=_there_is(self.numerics.forced_step_implementation),
    )
    y = dense(self._values(out), self.out[...], self.numerics)
    return y, pools._replace(pages=Latents(pages))

  def _project(self, x: Float[Array, "*rows d"]) -> tuple[Array, Array]:
    """Projects to queries, and to what is kept."""
    weights = self.in_query[...], self.in_latent[...]
    query, latent = dense_each(x, weights, self.numerics)
    return query, latent

  def _absorbed(
    self, query: Float[Array, "rows queries"], latent: Float[Array, "rows k"]
  ) -> tuple[Float[Array, "rows h k"], Float[Array, "rows 1 k"]]:
    """Takes queries to the space of latents, scaled; normalises latents."""
    c = self.config
    query = query.reshape(-1, c.heads, c.query_width)
    own, shared = jnp.split(query, [c.key_width], axis=-1)
    own = self._per_head("hrk,hkl->hrl", own, self.key_up)
    q = jnp.concatenate([own, shared.astype(jnp.float32)], axis=-1)
    q = (q * c.query_width**-0.5).astype(query.dtype)
    made, rest = jnp.split(latent, [c.latent_width], axis=-1)
    made = scaled_rms_norm(made, self.latent_norm[...], c.eps)
    return q, jnp.concatenate([made, rest], axis=-1)[:, None]

  def _values(
    self, out: Float32[Array, "rows h latent"]
  ) -> Float[Array, "rows values"]:
    """Makes values of attended latents, and puts heads side by side."""
    out = out.astype(self.numerics.dtype)
    values = self._per_head("hrl,hvl->hrv", out, self.value_up)
    return values.astype(out.dtype).reshape(out.shape[0], -1)

  def _per_head(
    self, axes: str, x: Float[Array, "rows h i"], weight: nnx.Param[Array]
  ) -> Float32[Array, "rows h o"]:
    """Multiplies every head of a row by a weight of its own."""
    # Behind a barrier: XLA on a CPU has no product of bfloat16 into float32
    # that reads heads from the middle.
    heads = barrier(x.swapaxes(0, 1))
    out = jnp.einsum(
      axes,
      heads,
      weight[...],
      precision=self.numerics.precision,
      preferred_element_type=jnp.float32,
    )
    return out.swapaxes(0, 1)


def _there_is(implementation: str | None) -> str | None:
  """What is asked for, where there is such a one: no kernel for GPU is."""
  return None if implementation == "mosaic_gpu" else implementation
