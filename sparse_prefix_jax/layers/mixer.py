"""What every layer that mixes tokens has in common."""

from typing import Any, Protocol

from jaxtyping import Array, Float

from sparse_prefix_jax import array_typing as at
from sparse_prefix_jax.kernels.chunks import Chunks, Rows


class Mixer(Protocol):
  """A layer whose state lives in pools that are passed in and returned.

  Recurrent layers keep slots, attention keeps pages; each takes of the common
  arguments what it needs.
  """

  def init_pools(self, *, slots: int, pages: int, chunk: int) -> Any:
    """Makes pools of zeros for that many slots, or pages of `chunk` tokens."""
    ...

  def __call__(
    self,
    x: Float[Array, "n c d"],
    pools: Any,
    chunks: Chunks,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "n c d"], Any]:
    """Restores, scans and captures n packed chunks of normalised inputs."""
    ...

  def step(
    self,
    x: Float[Array, "b d"],
    pools: Any,
    rows: Rows,
    page_table: at.PageTable,
  ) -> tuple[Float[Array, "b d"], Any]:
    """Runs one token of each of b running sequences; updates their states."""
    ...
