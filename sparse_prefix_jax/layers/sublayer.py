"""What a kind of layer is: frozen choices that make a module and declare it.

A sublayer is what stands between the norms of a residual branch: a mixer, a
feed-forward layer, or several of them side by side. It names the arrays that it
keeps and allocates none; whoever serves makes pools of them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows
from sparse_prefix_jax.layers.numerics import Numerics


class BranchPools(NamedTuple):
  """What one branch keeps, said of each array: either part may be empty.

  Attributes:
    slots: A tree of arrays with one row per state checkpoint, the carry of a
      recurrence at one position. [s ...]
    pages: A tree of arrays with one row per page, what is kept of the tokens of
      one chunk. [p ...]
  """

  slots: Any = ()
  pages: Any = ()

  def map(
    self, on_slots: Callable[[Any], Any], on_pages: Callable[[Any], Any]
  ) -> "BranchPools":
    """Applies one function to all arrays of slots, another to those of pages.

    Example:
      >>> pools = BranchPools(slots=(1, 2), pages=3)
      >>> pools.map(lambda x: x + 1, lambda x: -x)
      BranchPools(slots=(2, 3), pages=-3)
    """
    return BranchPools(
      jax.tree.map(on_slots, self.slots), jax.tree.map(on_pages, self.pages)
    )

  def zeros(self, *, slots: int, pages: int) -> "BranchPools":
    """Makes pools of zeros, where `self` holds shapes of one slot and one page.

    Args:
      slots: How many state checkpoints.
      pages: How many pages.

    Example:
      >>> kept = BranchPools(slots=jax.ShapeDtypeStruct((8, 4), jnp.float32))
      >>> kept.zeros(slots=3, pages=5).slots.shape
      (3, 8, 4)
    """

    def rows(count: int) -> Callable[[jax.ShapeDtypeStruct], Array]:
      return lambda one: jnp.zeros((count, *one.shape), one.dtype)

    return self.map(rows(slots), rows(pages))


def join_pools(pools: Iterable[BranchPools]) -> BranchPools:
  """Makes one of several: its slots, and its pages, are a tuple of theirs.

  Args:
    pools: At least one.

  Example:
    >>> join_pools([BranchPools(slots=1), BranchPools(pages=2)])
    BranchPools(slots=(1, ()), pages=((), 2))
  """
  slots, pages = zip(*pools, strict=True)
  return BranchPools(slots, pages)


def split_pools(pools: BranchPools) -> list[BranchPools]:
  """Separates what `join_pools` put together.

  Args:
    pools: Slots and pages are tuples of one length.

  Example:
    >>> split_pools(BranchPools(slots=(1, ()), pages=((), 2)))[0]
    BranchPools(slots=1, pages=())
  """
  return [
    BranchPools(slots, pages)
    for slots, pages in zip(pools.slots, pools.pages, strict=True)
  ]


class Flops(NamedTuple):
  """What a sublayer computes in a prefill; a product of [i, o] counts 2 i o.

  Attributes:
    token: Floating point operations for each token.
    pair: Those for each pair of a token and one that it attends to.
  """

  token: float
  pair: float = 0


@runtime_checkable
class SublayerModule(Protocol):
  """The parameters of a sublayer, and what is computed with them.

  Each takes of the common arguments what it needs: recurrent layers use slots,
  attention pages, a feed-forward layer neither.
  """

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: BranchPools,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], BranchPools]:
    """Restores, scans and captures n packed chunks of normalised inputs."""
    ...

  def step(
    self,
    x: Float[Array, "b d"],
    pools: BranchPools,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], BranchPools]:
    """Runs one token of each of b running sequences; updates their states."""
    ...


@runtime_checkable
class Sublayer(Protocol):
  """The choices of a sublayer: a frozen dataclass, hashable, hence static.

  The width of the model and the numerics are given to it, so that they are said
  once for all sublayers. docs/how-to/own_layer.md makes one.

  Attributes:
    kind: Its name in programs and reports, the same for all of a class.
  """

  kind: ClassVar[str]

  def make(
    self, width: int, numerics: Numerics, *, rngs: nnx.Rngs
  ) -> SublayerModule:
    """Makes the module, with new parameters.

    Args:
      width: Model width d, of inputs and outputs.
      numerics: How it is computed.
      rngs: Where random weights come from.
    """
    ...

  def keeps(self, width: int, numerics: Numerics) -> BranchPools:
    """Declares what it keeps: the shapes of one slot and of one page.

    Args:
      width: Model width d.
      numerics: Gives the type of the activations and the tokens of a page.

    Returns:
      Trees of `jax.ShapeDtypeStruct`; the module gets and returns trees of that
      form, with an axis of slots or pages in front.
    """
    ...

  def flops(self, width: int, numerics: Numerics) -> Flops:
    """Counts what a prefill computes."""
    ...

  def product_widths(self) -> Mapping[str, int]:
    """Names the columns of every product that runs on all rows of a program.

    Several rungs need multiples of 64. The model width is checked anyway, and
    what runs chunk by chunk may be as narrow as it likes.
    """
    ...


def check_sublayer(name: str, sub: object) -> None:
  """Refuses what makes no module, or could be no static argument.

  Args:
    name: What it is called, for the message.
    sub: What to look at.

  Raises:
    ValueError: If it lacks a part of `Sublayer`, or has no hash.
  """
  if isinstance(sub, type) or not isinstance(sub, Sublayer):
    raise ValueError(
      f"{name} is {sub!r}; it must be a sublayer, with kind, make, keeps, "
      "flops and product_widths."
    )
  try:
    hash(sub)
  except TypeError as error:
    raise ValueError(
      f"{name} is {sub!r}, which has no hash ({error}); it must be a frozen "
      "dataclass whose fields have one."
    ) from error
