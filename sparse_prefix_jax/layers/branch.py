"""The residual branch: what a model is a tuple of."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.choices import check_names, check_values
from sparse_prefix_jax.layers.normalization import Norm, residual_norm
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.sublayer import (
  BranchPools,
  Sublayer,
  check_sublayer,
)

_NORM = Norm()


@dataclasses.dataclass(frozen=True)
class Branch:
  """Static choices of keep * r + scale * post(sub(pre(x))).

  Attributes:
    sub: The sublayer: a mixer, a feed-forward layer, or several side by side.
    pre: The norm before it, or None.
    post: The norm after it, or None.
    keep: The factor of r.
    scale: The factor of the sublayer.
    residual: What r is: "input" for x, "normed" for pre(x).

  Raises:
    ValueError: If a field is no such thing; the sentence names it, its value
      and what is allowed.

  Example:
    >>> from sparse_prefix_jax.layers import SwiGLUConfig
    >>> Branch(SwiGLUConfig(hidden=128), pre=Norm(eps=1e-5), scale=0.22).keep
    1.0
  """

  sub: Sublayer
  _: dataclasses.KW_ONLY
  pre: Norm | None = _NORM
  post: Norm | None = None
  keep: float = 1.0
  scale: float = 1.0
  residual: str = "input"

  def __post_init__(self) -> None:
    """Refuses what is no sublayer, no norm or no factor."""
    check_values(self)
    check_names(self, {"residual": ("input", "normed")})
    check_sublayer("sub", self.sub)
    for name in ("pre", "post"):
      norm = getattr(self, name)
      if not isinstance(norm, Norm | None):
        raise ValueError(f"{name} is {norm!r}; it must be a Norm or None.")
    if self.residual == "normed" and self.pre is None:
      raise ValueError(
        "residual is 'normed' and pre is None; there must be a norm to take."
      )

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> "ResidualBranch":
    """Makes the branch, with new parameters."""
    return ResidualBranch(self, width, numerics, rngs=rngs)


class ResidualBranch(nnx.Module):
  """One residual branch: keep * r + scale * post(sub(pre(x))).

  Attributes:
    pre: The weight of the norm before, or None. [d]
    sub: The module of the sublayer.
    post: The weight of the norm after, or None. [d]
  """

  def __init__(
    self, config: Branch, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> None:
    self.config = config
    self.pre = config.pre and config.pre.weight(width, numerics.dtype)
    self.sub = config.sub.make(width, numerics, rngs=rngs)
    self.post = config.post and config.post.weight(width, numerics.dtype)

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Runs n packed chunks through the branch.

    Args:
      x: The residual stream.
      pools: What this branch keeps, donated: the result takes its memory.
      chunks: What each chunk reads, writes and holds.
      page_table: Pages of each request, in order.

    Returns:
      The residual stream, and the pools with what was captured.
    """
    with jax.named_scope(self.config.sub.kind):
      normed = _normed(x, self.pre, self.config.pre)
      returned = self.sub(normed, pools, chunks, page_table)
      check_forms(self.config.sub.kind, (normed, pools), returned)
      out, after = returned
      return self._joined(x, normed, out), after

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of each of b running sequences through the branch.

    Args:
      x: The residual stream, one row per sequence.
      pools: What this branch keeps, donated: the result takes its memory.
      rows: What each row reads and writes.
      page_table: Pages of each sequence, in order.

    Returns:
      The residual stream, and the pools with the tokens' states or keys.
    """
    normed = _normed(x, self.pre, self.config.pre)
    returned = self.sub.step(normed, pools, rows, page_table)
    check_forms(self.config.sub.kind, (normed, pools), returned)
    out, after = returned
    return self._joined(x, normed, out), after

  def _joined(self, x: Array, normed: Array, out: Array) -> Array:
    """Adds the sublayer to r; a factor of 1 is no product."""
    c, out = self.config, _normed(out, self.post, self.config.post)
    kept = normed if c.residual == "normed" else x
    kept = kept if c.keep == 1 else kept * c.keep
    return kept + (out if c.scale == 1 else out * c.scale)


def check_forms(kind: str, given: Any, returned: Any) -> None:
  """Refuses a sublayer that changes the form of its input or its pools.

  A pool of another type would be another program for the next call, and an
  output of another type change the residual stream, both in silence.

  Args:
    kind: What the sublayer calls itself.
    given: Its input and its pools.
    returned: What it made of them.

  Raises:
    ValueError: If they are not of one form.
  """
  forms = [jax.tree.map(_form, tree) for tree in (given, returned)]
  structures = [jax.tree.structure(tree) for tree in (given, returned)]
  if forms[0] != forms[1] or structures[0] != structures[1]:
    raise ValueError(
      f"{kind} returns {forms[1]} for an input and pools of {forms[0]}; it "
      "must keep their form."
    )


def _form(x: Any) -> str:
  """Type and shape of an array; what is none has neither."""
  if not hasattr(x, "dtype"):
    return repr(x)
  return f"{x.dtype}{list(x.shape)}"


def _normed(x: Array, weight: nnx.Param | None, norm: Norm | None) -> Array:
  """A norm of the residual stream, where there is one."""
  if weight is None or norm is None:
    return x
  return residual_norm(x, weight[...], norm)
