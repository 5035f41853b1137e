"""A mixture of experts that drops no token: every row is computed alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.barrier import barrier
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.kernels.loops import scan_into_buffers
from sparse_prefix_jax.layers.activations import ACTIVATIONS
from sparse_prefix_jax.layers.choices import (
  MOST,
  check_multiple,
  check_names,
  check_values,
  is_int,
)
from sparse_prefix_jax.layers.dense import dense, kernel, product
from sparse_prefix_jax.layers.expert_blocks import Blocks, sort_into_blocks
from sparse_prefix_jax.layers.explicit import ExplicitModule
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.router import (
  Routing,
  sigmoid_routing,
  softmax_routing,
)
from sparse_prefix_jax.layers.sublayer import BranchPools, Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
  """Static choices of a mixture of experts, each a feed-forward layer.

  Attributes:
    experts: How many there are, a multiple of groups.
    chosen: How many compute each token.
    hidden: Width of the inner products of each.
    normalized: Whether the weights of the chosen are divided by their sum.
    block: Rows of one product, all of one expert; free ones are computed too.
      None takes what an expert gets of 1,024 tokens, as a power of two from 16
      to 64. In decoding there are no more than the program has.
    score: What makes weights of a router's scores: "softmax" over all experts,
      or the "sigmoid" of each, which a correction is added to for the choice.
      The router of the latter is held and computed in float32.
    factor: What weights are multiplied by.
    groups: Groups of experts; only with sigmoid there may be several.
    chosen_groups: How many groups the experts of a token come from.
    gated: Whether the activation opens a second inner product.
    activation: What stands between the products.
    latent: Width of what the experts read and write, with a product before and
      one after them; None is the model width, without these products.

  Raises:
    ValueError: If a field is out of its range; the sentence names it, its value
      and what is allowed.

  Example:
    >>> config = ExpertsConfig(experts=8, chosen=2, hidden=32)
    >>> config.flops(64, Numerics()).token
    25600
  """

  kind: ClassVar[str] = "experts"

  experts: int
  chosen: int
  hidden: int
  normalized: bool = True
  block: int | None = None
  score: str = "softmax"
  factor: float = 1.0
  groups: int = 1
  chosen_groups: int = 1
  gated: bool = True
  activation: str = "silu"
  latent: int | None = None

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and experts that make no groups."""
    check_values(self)
    # A product of fewer rows has other bits.
    if self.block is not None and not (
      is_int(self.block) and 2 <= self.block <= MOST
    ):
      raise ValueError(
        f"block is {self.block!r}; it must be an int from 2 or None."
      )
    known = {"score": ("softmax", "sigmoid"), "activation": tuple(ACTIVATIONS)}
    check_names(self, known)
    check_multiple(self, "experts", "groups")
    self._check_groups()
    if self.latent is not None and not (
      is_int(self.latent) and 1 <= self.latent <= MOST
    ):
      raise ValueError(
        f"latent is {self.latent!r}; it must be an int above 0 or None."
      )

  def _check_groups(self) -> None:
    """Refuses more than there are to choose from."""
    per_group = self.experts // self.groups
    if self.groups > 1 and (self.score == "softmax" or per_group < 2):
      raise ValueError(
        f"groups is {self.groups}; with score = {self.score!r} and experts = "
        f"{self.experts} it must be 1: groups are scored by sigmoid, by their "
        "two best experts."
      )
    if self.chosen_groups > self.groups:
      raise ValueError(
        f"chosen_groups is {self.chosen_groups}; it must be at most groups = "
        f"{self.groups}."
      )
    if self.chosen > per_group * self.chosen_groups:
      raise ValueError(
        f"chosen is {self.chosen}; it must be at most experts = {self.experts}"
        + (f" in {self.chosen_groups} groups." if self.groups > 1 else ".")
      )

  @property
  def rows(self) -> int:
    """Rows of one product in prefill."""
    if self.block is not None:
      return self.block
    # Of two blocks of an expert each reads its weights: few are better, but of
    # a large one most rows are free where few tokens choose the expert.
    share = min(64, max(16, 1024 * self.chosen // self.experts))
    return 1 << (share.bit_length() - 1)

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "Experts":
    """Makes the layer, with new parameters."""
    return Experts(self, width, numerics, rngs=rngs)

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Keeps nothing: every token is computed alone."""
    del width, numerics
    return BranchPools()

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts the router, and the products of each chosen expert."""
    del numerics
    inner = width if self.latent is None else self.latent
    around = 0 if self.latent is None else 4 * width * inner
    each = 2 * (3 if self.gated else 2) * inner * self.hidden
    router = 2 * width * self.experts
    return Flops(token=router + around + self.chosen * each)

  def product_widths(self) -> Mapping[str, int]:
    """Names what leads to the experts; theirs have a fixed number of rows."""
    return {} if self.latent is None else {"latent": self.latent}


class Experts(ExplicitModule):
  """sum_e w_e(x) W_down,e (silu(W_gate,e x) * W_up,e x) over the best experts.

  w is the softmax of a router over all experts, cut to the best. No expert has
  a capacity: a token's result does not depend on what others choose. Router,
  softmax and choice run chunk by chunk, the products in blocks of a fixed
  number of rows; neither sees how many rows a program has. Experts without a
  gate are W_down,e f(W_up,e x).

  Attributes:
    router: The weight that scores the experts. [d experts]
    correction: With sigmoids, what is added for the choice. [experts]
    enter: The weight before the experts, where they are narrower. [d i]
    leave: The weight after them, there. [i d]
    gate_up: The weights of the gate, then those that it multiplies, with
      outputs first; those of the one inner product without a gate.
      [experts 2*hidden i]
    down: The weights that lead back, with outputs first. [experts i hidden]
  """

  def __init__(
    self,
    config: ExpertsConfig,
    width: int,
    numerics: Numerics,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    c, dtype = config, jnp.dtype(numerics.dtype)
    self.config, self.numerics = config, numerics
    sigmoid, inner = c.score == "sigmoid", c.latent or width
    self.router = kernel(
      rngs, width, c.experts, "float32" if sigmoid else numerics.dtype
    )
    if sigmoid:
      self.correction = nnx.Param(jnp.zeros(c.experts, jnp.float32))
    if c.latent:
      self.enter = kernel(rngs, width, inner, numerics.dtype)
      self.leave = kernel(rngs, inner, width, numerics.dtype)
    init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
    rows = 2 * c.hidden if c.gated else c.hidden
    shapes = (c.experts, rows, inner), (c.experts, inner, c.hidden)
    self.gate_up, self.down = (
      nnx.Param(init(rngs.params(), shape, dtype)) for shape in shapes
    )

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Computes every token of n packed chunks alone.

    Args:
      x: Normalised inputs.
      pools: Empty, and returned as they are.
      chunks: Their lengths say which tokens are routed.
      page_table: Ignored, since nothing is kept.

    Returns:
      The outputs, zero for padding, and the pools.
    """
    del page_table
    n, c, _ = x.shape
    with jax.named_scope("router"):
      routing = map_rows(self._choose, x)
    real = jnp.arange(c, dtype=jnp.int32)[None] < chunks.length[:, None]
    blocks = sort_into_blocks(
      routing.expert.reshape(n * c, -1),
      real.reshape(-1),
      experts=self.config.experts,
      block=self.config.rows,
    )
    with jax.named_scope("experts"):
      x = self._entered(x)
      outs = self._outputs(x.reshape(n * c, -1), blocks)
    outs = outs.reshape(n, c, *outs.shape[1:])
    with jax.named_scope("sum"):
      out = map_rows(_weighted, outs, routing.weight)
    return self._left(out), pools

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Computes one token of each of b running sequences.

    Args:
      x: Normalised inputs, one row per sequence.
      pools: Empty, and returned as they are.
      rows: Which rows a sequence holds; others are not routed.
      page_table: Ignored, since nothing is kept.

    Returns:
      The outputs, zero for free rows, and the pools.
    """
    del page_table
    routing = barrier(self._choose(barrier(x)))
    # An expert is chosen once by a row. Not the rows of this call: a cell has
    # others, and the bits of this.
    block = min(self.config.rows, self.numerics.decode_rows)
    blocks = sort_into_blocks(
      routing.expert,
      rows.active,
      experts=self.config.experts,
      block=block,
    )
    outs = self._outputs(self._entered(x), blocks)
    return self._left(_weighted(outs, routing.weight)), pools

  def _entered(self, x: Float[Array, "*rows d"]) -> Array:
    """Brings all rows to the width of the experts, where that is another."""
    if self.config.latent is None:
      return x
    return dense(x, self.enter[...], self.numerics)

  def _left(self, x: Float[Array, "*rows i"]) -> Array:
    """Brings all rows back to the model width."""
    if self.config.latent is None:
      return x
    return dense(x, self.leave[...], self.numerics)

  def _choose(self, x: Float[Array, "rows d"]) -> Routing:
    """Scores all experts and takes the best; of equal ones the first."""
    c = self.config
    x = x.astype(self.router.dtype)
    scores = product(x, self.router[...], self.numerics.precision)
    if c.score == "sigmoid":
      groups = c.groups, c.chosen_groups
      correction = self.correction[...]
      routing = sigmoid_routing(
        scores, correction, c.chosen, c.normalized, groups
      )
    else:
      routing = softmax_routing(scores, c.chosen, c.normalized)
    if c.factor == 1:
      return routing
    return routing._replace(weight=routing.weight * c.factor)

  def _outputs(
    self, x: Float[Array, "rows d"], blocks: Blocks
  ) -> Float[Array, "rows chosen d"]:
    """What each chosen expert makes of each row, block by block."""
    x = barrier(x)
    # Taking an expert's weights copies them: once for all blocks of an expert,
    # of which there is one where a block has room for every row.
    several = blocks.source.shape[1] < x.shape[0]

    def body(held: Any, block: Any) -> tuple[Any, Array]:
      expert, used, first, source = barrier(block)
      if several:
        held = lax.cond(first, lambda: self._weights(expert), lambda: held)
      y = lax.cond(
        used,
        lambda: self._expert(x, held or self._weights(expert), source),
        lambda: jnp.zeros((source.size, x.shape[1]), x.dtype),
      )
      return held, barrier(y)

    inputs = blocks.expert, blocks.used, blocks.first, blocks.source
    held = self._weights(blocks.expert[0]) if several else None
    _, outs = scan_into_buffers(body, held, inputs)
    outs = outs.reshape(-1, x.shape[1])
    # Past the end is what no expert computes.
    outs = outs.at[blocks.place].get(mode="fill", fill_value=0)
    return barrier(outs)

  def _weights(
    self, expert: Int32[Array, ""]
  ) -> tuple[Float[Array, "o d"], Float[Array, "d h"]]:
    """Those of one expert: what leads in, and what leads back."""
    return self.gate_up[expert], self.down[expert]

  def _expert(
    self,
    x: Float[Array, "rows d"],
    weights: tuple[Float[Array, "o d"], Float[Array, "d h"]],
    source: Int32[Array, "block"],
  ) -> Float[Array, "block d"]:
    """One expert on the rows of one block; free places are rows of zeros."""
    gate_up, down = weights
    rows = x.at[source].get(mode="fill", fill_value=0)
    gate, up = self._product(rows, gate_up), None
    if self.config.gated:
      gate, up = jnp.split(gate, 2, axis=-1)
    hidden = ACTIVATIONS[self.config.activation](gate.astype(jnp.float32))
    hidden = hidden.astype(x.dtype)
    hidden = hidden if up is None else hidden * up
    return self._product(hidden, down)

  def _product(
    self, x: Float[Array, "block i"], weight: Float[Array, "o i"]
  ) -> Float[Array, "block o"]:
    """Multiplies by a weight with outputs first; nothing is fused into it."""
    # A barrier each: JAX 0.11 cannot transpose one of which some is no tangent.
    y = jnp.einsum(
      "bi,oi->bo",
      barrier(x),
      barrier(weight),
      precision=self.numerics.precision,
      preferred_element_type=jnp.float32,
    )
    return barrier(y.astype(x.dtype))


def _weighted(
  outs: Float[Array, "rows chosen d"], weight: Float32[Array, "rows chosen"]
) -> Float[Array, "rows d"]:
  """Adds the outputs of the experts, the best first, in float32."""
  outs, weight = barrier((outs, weight))
  total = jnp.zeros((outs.shape[0], outs.shape[2]), jnp.float32)
  for rank in range(outs.shape[1]):
    total = total + weight[:, rank, None] * outs[:, rank].astype(jnp.float32)
  return barrier(total.astype(outs.dtype))
