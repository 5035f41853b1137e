"""A mixture of experts that drops no token: every row is computed alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows, map_rows
from sparse_prefix_jax.layers.activations import ACTIVATIONS
from sparse_prefix_jax.layers.choices import (
  MOST,
  check_multiple,
  check_names,
  check_values,
  is_int,
)
from sparse_prefix_jax.layers.dense import dense, kernel, product
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
      In decoding it has no more than there are rows.
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
  block: int = 16
  score: str = "softmax"
  factor: float = 1.0
  groups: int = 1
  chosen_groups: int = 1
  gated: bool = True
  activation: str = "silu"
  latent: int | None = None

  def __post_init__(self) -> None:
    """Refuses counts out of their range, and experts that make no groups."""
    # A product of fewer rows has other bits.
    check_values(self, {"block": 2})
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


class Blocks(NamedTuple):
  """Tokens sorted by expert, in blocks of rows that belong to one expert.

  Attributes:
    expert: The expert of each block.
    used: Whether the block holds a token.
    source: The row of each place, or the number of rows where it is free.
    place: Where each choice of each row stands among all places of all blocks;
      their number for rows that are not computed. [rows chosen]
  """

  expert: Int32[Array, "blocks"]
  used: Bool[Array, "blocks"]
  source: Int32[Array, "blocks block"]
  place: Int32[Array, "rows chosen"]


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
    real = jnp.arange(c)[None] < chunks.length[:, None]
    blocks = self._sorted(
      routing.expert.reshape(n * c, -1), real.reshape(-1), self.config.block
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
    routing = lax.optimization_barrier(
      self._choose(lax.optimization_barrier(x))
    )
    # An expert is chosen once by a row. Not the rows of this call: a cell has
    # others, and the bits of this.
    block = min(self.config.block, self.numerics.decode_rows)
    blocks = self._sorted(routing.expert, rows.active, block)
    outs = self._outputs(self._entered(x), blocks)
    return self._left(_weighted(outs, routing.weight)), pools

  def _entered(self, x: Float[Array, "*rows d"]) -> Array:
    """Brings all rows to the width of the experts, where that is another."""
    if self.config.latent is None:
      return x
    return dense(x, self.enter[...], self.numerics.precision)

  def _left(self, x: Float[Array, "*rows i"]) -> Array:
    """Brings all rows back to the model width."""
    if self.config.latent is None:
      return x
    return dense(x, self.leave[...], self.numerics.precision)

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

  def _sorted(
    self,
    expert: Int32[Array, "rows chosen"],
    real: Bool[Array, "rows"],
    block: int,
  ) -> Blocks:
    """Sorts the choices of real rows by expert, into blocks of so many.

    Integers alone: every row finds its place, and no bit of a value depends on
    where it is.
    """
    c, (rows, chosen) = self.config, expert.shape
    expert = jnp.where(real[:, None], expert, c.experts).reshape(-1)
    order = jnp.argsort(expert, stable=True)
    counts = jnp.bincount(expert, length=c.experts + 1)[: c.experts]
    blocks = -(-counts // block)
    ends = jnp.cumsum(blocks)
    # Among the sorted, a token's rank within its expert is what remains of its
    # own number after all tokens of the experts before.
    shift = (ends - blocks) * block - (jnp.cumsum(counts) - counts)
    many = self._most_blocks(rows * chosen, block)
    sorted_expert = expert[order]
    place = (
      jnp.arange(rows * chosen)
      + shift[jnp.minimum(sorted_expert, c.experts - 1)]
    )
    place = jnp.where(sorted_expert < c.experts, place, many * block)
    source = (
      jnp.full(many * block, rows).at[place].set(order // chosen, mode="drop")
    )
    number = jnp.arange(many)
    owner = jnp.searchsorted(ends, number, side="right")
    return Blocks(
      expert=jnp.minimum(owner, c.experts - 1).astype(jnp.int32),
      used=number < ends[-1],
      source=source.reshape(many, block),
      place=jnp.zeros_like(place).at[order].set(place).reshape(rows, chosen),
    )

  def _most_blocks(self, choices: int, block: int) -> int:
    """How many blocks so many choices may fill; two, for a loop to stay one."""
    experts = min(self.config.experts, choices)
    most = (choices + experts * (block - 1)) // block
    return max(2, min(choices, most))

  def _outputs(
    self, x: Float[Array, "rows d"], blocks: Blocks
  ) -> Float[Array, "rows chosen d"]:
    """What each chosen expert makes of each row, block by block."""
    x = lax.optimization_barrier(x)

    def body(_: None, block: Any) -> tuple[None, Array]:
      expert, used, source = lax.optimization_barrier(block)
      y = lax.cond(
        used,
        lambda: self._expert(x, expert, source),
        lambda: jnp.zeros((source.size, x.shape[1]), x.dtype),
      )
      return None, lax.optimization_barrier(y)

    inputs = blocks.expert, blocks.used, blocks.source
    _, outs = lax.scan(body, None, inputs)
    outs = outs.reshape(-1, x.shape[1])
    # Past the end is what no expert computes.
    outs = outs.at[blocks.place].get(mode="fill", fill_value=0)
    return lax.optimization_barrier(outs)

  def _expert(
    self,
    x: Float[Array, "rows d"],
    expert: Int32[Array, ""],
    source: Int32[Array, "block"],
  ) -> Float[Array, "block d"]:
    """One expert on the rows of one block; free places are rows of zeros."""
    rows = x.at[source].get(mode="fill", fill_value=0)
    gate, up = self._product(rows, self.gate_up[expert]), None
    if self.config.gated:
      gate, up = jnp.split(gate, 2, axis=-1)
    hidden = ACTIVATIONS[self.config.activation](gate.astype(jnp.float32))
    hidden = hidden.astype(x.dtype)
    hidden = hidden if up is None else hidden * up
    return self._product(hidden, self.down[expert])

  def _product(
    self, x: Float[Array, "block i"], weight: Float[Array, "o i"]
  ) -> Float[Array, "block o"]:
    """Multiplies by a weight with outputs first; nothing is fused into it."""
    y = jnp.einsum(
      "bi,oi->bo",
      *lax.optimization_barrier((x, weight)),
      precision=self.numerics.precision,
      preferred_element_type=jnp.float32,
    )
    return lax.optimization_barrier(y.astype(x.dtype))


def _weighted(
  outs: Float[Array, "rows chosen d"], weight: Float32[Array, "rows chosen"]
) -> Float[Array, "rows d"]:
  """Adds the outputs of the experts, the best first, in float32."""
  outs, weight = lax.optimization_barrier((outs, weight))
  total = jnp.zeros((outs.shape[0], outs.shape[2]), jnp.float32)
  for rank in range(outs.shape[1]):
    total = total + weight[:, rank, None] * outs[:, rank].astype(jnp.float32)
  return lax.optimization_barrier(total.astype(outs.dtype))
