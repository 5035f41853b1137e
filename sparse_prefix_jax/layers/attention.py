"""Attention with grouped queries over lattice pages, gated or not."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.layers.attention_pages import (
  Heads,
  attend_packed,
  attend_step,
  kept_pages,
)
from sparse_prefix_jax.layers.choices import (
  MOST,
  check_multiple,
  check_values,
  is_int,
  is_positive,
)
from sparse_prefix_jax.layers.dense import bias_row, dense, dense_each, kernel
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.normalization import (
  Norm,
  rms_norm,
  scaled_rms_norm,
)
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.rotary import RopeScaling, rotate
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops

HeadNorm: TypeAlias = Callable[..., Array]
"""`rms_norm` or `scaled_rms_norm`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Static choices of an attention layer.

  Attributes:
    heads: Query heads, a multiple of kv_heads.
    kv_heads: Heads hkv of keys and values.
    head_width: Width k of a head.
    rotary_width: Leading channels of a head that are rotated, an even number;
      None rotates nothing, so that positions are not told apart.
    rope_theta: Base of the rotary frequencies.
    eps: What the norms of queries and keys add to the mean square.
    rope_scaling: How the rotary frequencies are scaled; None leaves them.
    gate: Whether outputs are multiplied by the sigmoid of a gate.
    head_norm: Whether queries and keys are normalised, head by head.
    scale: The factor of scores; None is 1 / sqrt(head_width).
    key_scale: What keys are multiplied by before they are normalised.
    attention_window: Tokens that a token sees, itself included; None for all
      before it.
    bias: Whether queries, keys and values have biases.
    out_bias: Whether the projection back has one.
    row_norm: Whether queries and keys are normalised, all heads at once.
    centred: Whether the weights of these norms are stored minus one.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = AttentionConfig(
    ...   heads=4, kv_heads=2, head_width=32, rotary_width=16
    ... )
    >>> config.keeps(64, Numerics()).pages.keys.shape
    (64, 2, 32)
  """

  kind: ClassVar[str] = "attention"

  heads: int
  kv_heads: int
  head_width: int
  rotary_width: int | None
  rope_theta: float = 1e7
  eps: float = 1e-6
  rope_scaling: RopeScaling | None = None
  gate: bool = True
  head_norm: bool = True
  scale: float | None = None
  key_scale: float = 1.0
  attention_window: int | None = None
  bias: bool = False
  out_bias: bool = False
  row_norm: bool = False
  centred: bool = True

  def __post_init__(self) -> None:
    """Refuses heads that cannot share, and channels that cannot pair."""
    check_values(self)
    check_multiple(self, "heads", "kv_heads")
    if self.head_norm and self.row_norm:
      raise ValueError("head_norm and row_norm are True; only one may be.")
    if self.attention_window is not None and not (
      is_int(self.attention_window) and 1 <= self.attention_window <= MOST
    ):
      raise ValueError(
        f"attention_window is {self.attention_window!r}; it must be an int "
        "above 0 or None."
      )
    if not self._pairs():
      raise ValueError(
        f"rotary_width is {self.rotary_width!r}; it must be even and at least "
        f"2 and at most head_width = {self.head_width}, or None."
      )
    if self.scale is not None and not is_positive(self.scale):
      raise ValueError(
        f"scale is {self.scale!r}; it must be a finite number above 0 or None."
      )
    self._check_scaling()

  def _pairs(self) -> bool:
    """Whether the channels that are rotated can be paired."""
    width = self.rotary_width
    if width is None:
      return True
    return is_int(width) and width % 2 == 0 and 2 <= width <= self.head_width

  def _check_scaling(self) -> None:
    """Refuses what is no scaling, or cannot scale these frequencies."""
    scaling = self.rope_scaling
    if not isinstance(scaling, RopeScaling | None):
      raise ValueError(
        f"rope_scaling is {scaling!r}; it must be None or a RopeScaling."
      )
    if scaling and scaling.kind == "yarn" and self.rope_theta <= 1:
      raise ValueError(
        f"rope_theta is {self.rope_theta}; with yarn it must be above 1."
      )

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "GatedAttention":
    """Makes the layer, with new parameters."""
    return GatedAttention(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps the keys and values of a chunk on each page, and no state.

    In int8 slots keep those of the chunk that runs (see `attention_pages`).
    """
    del width
    return kept_pages(self.kv_heads, self.head_width, numerics)

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts the projections, and 4 * heads * head_width per pair.

    A window bounds the pairs of a token: they are counted with the token, as
    many as there are behind the first window.
    """
    del numerics
    queries = self.heads * self.head_width
    keys = self.kv_heads * self.head_width
    columns = (3 if self.gate else 2) * queries + 2 * keys
    seen = self.attention_window
    if seen is None:
      return Flops(token=2 * width * columns, pair=4 * queries)
    return Flops(token=2 * width * columns + 4 * queries * seen)

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of keys and values; those of queries are multiples."""
    return {"kv_heads * head_width": self.kv_heads * self.head_width}


class GatedAttention(ExplicitModule):
  """W_o (softmax(q K^T scale) V * sigmoid(g)), q and g from one product.

  Queries and keys are normalised per head and rotated by absolute position;
  gate, norms and rotation are there where the configuration has them.
  """

  def __init__(
    self,
    config: AttentionConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, numerics.dtype
    queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    self.config, self.numerics = config, numerics
    columns = 2 * queries if c.gate else queries
    self.in_query_gate = kernel(rngs, width, columns, dtype)
    self.in_key = kernel(rngs, width, keys, dtype)
    self.in_value = kernel(rngs, width, keys, dtype)
    self.query_gate_bias = bias_row(c.bias, columns, dtype)
    self.key_bias = bias_row(c.bias, keys, dtype)
    self.value_bias = bias_row(c.bias, keys, dtype)
    norm = Norm(centred=c.centred, eps=c.eps)
    if c.head_norm:
      self.query_norm = norm.weight(c.head_width, dtype)
      self.key_norm = norm.weight(c.head_width, dtype)
    if c.row_norm:
      self.query_norm = norm.weight(queries, dtype)
      self.key_norm = norm.weight(keys, dtype)
    self.out = kernel(rngs, queries, width, dtype)
    self.out_bias = bias_row(c.out_bias, width, dtype)

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
    tokens = jnp.arange(x.shape[1], dtype=jnp.int32)
    position = chunks.position[:, None] + tokens[None]
    projected = self._project(x)
    with jax.named_scope("heads"):
      q, gate, k, v = map_rows(self._heads, *projected, position)
    with jax.named_scope("attention"):
      out, pools = attend_packed(
        Heads(q, k, v),
        pools,
        chunks,
        page_table,
        window=self.config.attention_window,
        numerics=self.numerics,
      )
    with jax.named_scope("heads"):
      out = map_rows(self._side_by_side, out, gate)
    return self._close(out), pools

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
      The outputs, and the pools with the tokens' keys and values.
    """
    q, gate, k, v = self._heads(*self._project(x), rows.position)
    out, pools = attend_step(
      Heads(q, k, v),
      pools,
      rows,
      page_table,
      window=self.config.attention_window,
      numerics=self.numerics,
    )
    return self._close(self._side_by_side(out, gate)), pools

  def _project(
    self, x: Float[Array, "*rows d"]
  ) -> tuple[Float[Array, "*rows qg"], Array, Array]:
    weights = self.in_query_gate[...], self.in_key[...], self.in_value[...]
    biases = self.query_gate_bias, self.key_bias, self.value_bias
    query_gate, key, value = dense_each(
      x, weights, self.numerics, biases=biases
    )
    return query_gate, key, value

  def _close(self, out: Float[Array, "*rows queries"]) -> Array:
    return dense(out, self.out[...], self.numerics, bias=self.out_bias)

  def _heads(
    self,
    query_gate: Float[Array, "rows qg"],
    key: Float[Array, "rows keys"],
    value: Float[Array, "rows keys"],
    position: Int32[Array, "rows"],
  ) -> tuple[Array, Array | None, Array, Array]:
    """Splits projections into heads, normalises and rotates queries and keys.

    The queries that are returned are scaled; the gate and the values are not
    changed.
    """
    c, norm = self.config, None
    if c.head_norm:
      norm = rms_norm if c.centred else scaled_rms_norm
    q, gate = self._queries(query_gate, norm)
    k = key if c.key_scale == 1 else key * c.key_scale
    k = k.reshape(-1, c.kv_heads, c.head_width)
    v = value.reshape(-1, c.kv_heads, c.head_width)
    if norm is not None:
      k = norm(k, self.key_norm[...], c.eps)
    if c.row_norm:
      q, k = self._normed_rows(q, k)
    if c.rotary_width is not None:
      rope = (c.rotary_width, c.rope_theta, c.rope_scaling)
      q, k = (rotate(u, position, *rope) for u in (q, k))
    scale = c.head_width**-0.5 if c.scale is None else c.scale
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    return q, gate, k, v

  def _queries(
    self, query_gate: Float[Array, "rows qg"], norm: HeadNorm | None
  ) -> tuple[Array, Array | None]:
    """Cuts queries from their gates, where there are any, and norms them.

    On a GPU the gates of heads are normed too, for nothing: XLA would first
    copy the queries out, a kernel of its own.
    """
    c = self.config
    q = query_gate.reshape(query_gate.shape[0], c.heads, -1)
    if norm is None:
      return _cut(q) if c.gate else (q, None)
    normed = functools.partial(norm, weight=self.query_norm[...], eps=c.eps)
    if not c.gate:
      return normed(q), None
    q, gate = _cut(q)
    if current_device().platform != "gpu":
      return normed(q), gate
    both = query_gate.reshape(len(query_gate), 2 * c.heads, -1)
    return normed(both).reshape(len(both), c.heads, 2, -1)[:, :, 0], gate

  def _normed_rows(
    self, q: Float[Array, "rows h k"], k: Float[Array, "rows hkv k"]
  ) -> tuple[Array, Array]:
    """Normalises the queries, and the keys, of all heads of a row at once."""
    norm = rms_norm if self.config.centred else scaled_rms_norm
    weights = self.query_norm[...], self.key_norm[...]
    normed_q, normed_k = (
      norm(u.reshape(u.shape[0], -1), weight, self.config.eps).reshape(u.shape)
      for u, weight in zip((q, k), weights, strict=True)
    )
    return normed_q, normed_k

  def _side_by_side(
    self, out: Float32[Array, "rows h k"], gate: Array | None
  ) -> Float[Array, "rows queries"]:
    """Puts the heads of a row side by side, opened by their gates."""
    if gate is not None:
      return _gate(out, gate)
    dtype = jnp.dtype(self.numerics.dtype)
    return out.astype(dtype).reshape(out.shape[0], -1)


def _cut(x: Float[Array, "rows h qg"]) -> tuple[Array, Array]:
  """The queries of each head, and its gates."""
  q, gate = jnp.split(x, 2, axis=-1)
  return q, gate


def _gate(
  out: Float32[Array, "rows h k"], gate: Float[Array, "rows h k"]
) -> Float[Array, "rows queries"]:
  """Multiplies outputs by sigmoid(gate) and puts heads side by side."""
  opened = out * jax.nn.sigmoid(gate.astype(jnp.float32))
  return opened.astype(gate.dtype).reshape(gate.shape[0], -1)
