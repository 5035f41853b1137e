"""What bits depend on beside weights and architecture."""

import dataclasses
from collections.abc import Sequence

import jax

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.layers.choices import check_names, check_values, is_int

_NAMES = {
  "dtype": ("float32", "bfloat16"),
  "precision": ("default", "high", "highest"),
  "implementation": ("auto", "xla", "mosaic_gpu", "mosaic_tpu"),
}
_LEAST = {"decode_rows": 2, "head_rows": 2}
_LEAST_ROWS = 64  # measured: 16 rows differ from 64, 64 to 1,024 agree
_MOST_ROWS = 2**24  # of one program: far from int32, and beyond any device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
  """How a model is computed: one static argument for all of its layers.

  Two models that differ in one field do not promise equal bits, and a cache
  belongs to one of them.

  Attributes:
    dtype: "float32" or "bfloat16": weights, activations, keys and values.
    precision: The precision of products, as `jax.lax.Precision` names it.
    implementation: Which implementation of the operations runs: "auto" is the
      best that fits device and shapes; of the names, "xla" runs everywhere.
    chunk: Chunk length c in tokens; the lattice is its multiples.
    ladder: Packed chunks that one prefill program may take, ascending; one
      compilation each. Several rungs need widths that are multiples of 64 and
      at least 64 rows in the smallest.
    decode_rows: Rows of the decode program, at least 2.
    head_rows: Rows of the head program after prefill, at least 2; after a step
      it has `decode_rows`.
    page_dtype: "int8" quantises the keys and values of a chunk when it is
      completed: a quarter or half of the bytes, and close to the same
      attention; the chunk that runs is attended as it is, in `dtype`. None
      keeps all in `dtype`.
    max_length: Longest sequence in tokens, prompt and decoded.

  Raises:
    ValueError: If a field has another type or is out of its range; the sentence
      names it, its value and what is allowed.

  Example:
    >>> Numerics(chunk=40)
    Traceback (most recent call last):
    ValueError: chunk is 40; it must be a multiple of 16.
  """

  dtype: str = "float32"
  precision: str = "highest"
  implementation: str = "auto"
  chunk: int = 64
  ladder: tuple[int, ...] = (1, 2, 4, 8, 16)
  decode_rows: int = 4
  head_rows: int = 4
  page_dtype: str | None = None
  max_length: int = 32768

  def __post_init__(self) -> None:
    """Refuses what cannot work, or cannot keep the contract."""
    check_values(self, _LEAST)
    check_names(self, _NAMES)
    self._check_pages()
    self._check_ladder()

  @property
  def product_precision(self) -> jax.lax.Precision:
    """The precision as operations take it."""
    return jax.lax.Precision(self.precision)

  @property
  def forced_implementation(self) -> str | None:
    """The implementation as operations take it, where None chooses."""
    return None if self.implementation == "auto" else self.implementation

  @property
  def forced_step_implementation(self) -> str | None:
    """That of one token; None chooses on TPU, where not all have a kernel."""
    forced = self.forced_implementation
    return None if forced == "mosaic_tpu" else forced

  def _check_pages(self) -> None:
    """Refuses what pages cannot be, and kernels that cannot read them."""
    if self.page_dtype is None:
      return
    if not isinstance(self.page_dtype, str) or self.page_dtype != "int8":
      raise ValueError(
        f"page_dtype is {brief(self.page_dtype)}; it must be 'int8' or None."
      )
    if self.implementation not in ("auto", "xla"):
      raise ValueError(
        f"implementation is {self.implementation!r} and page_dtype is 'int8', "
        "which no kernel reads; it must be auto or xla."
      )

  def _check_ladder(self) -> None:
    """Refuses rungs that are no sizes, or whose bits would differ."""
    if (
      not self.ladder
      or not all(map(is_int, self.ladder))
      or min(self.ladder) < 1
      or list(self.ladder) != sorted(set(self.ladder))
    ):
      raise ValueError(
        f"ladder is {self.ladder}; it must be ascending ints, in chunks."
      )
    if self.chunk % 16:
      raise ValueError(f"chunk is {self.chunk}; it must be a multiple of 16.")
    if self.chunk * max(self.ladder) > _MOST_ROWS:
      raise ValueError(
        f"ladder is {self.ladder} and chunk is {self.chunk}, so the largest "
        f"program has {self.chunk * max(self.ladder)} rows; it may have at "
        f"most {_MOST_ROWS} rows."
      )
    rows = self.chunk * min(self.ladder)
    if len(self.ladder) > 1 and rows < _LEAST_ROWS:
      raise ValueError(
        f"ladder is {self.ladder} and chunk is {self.chunk}, so the smallest "
        f"program has {rows} rows; with several rungs it must have at least "
        f"{_LEAST_ROWS}, since products of fewer change their bits."
      )


def chunks_per_group(chunks: int, ladder: Sequence[int]) -> int:
  """Chooses how many chunks a group of a scan has: a rung, the same for all.

  Args:
    chunks: How many chunks there are.
    ladder: The rungs, ascending.

  Returns:
    The largest rung that pads by at most a quarter, or else the one that pads
    least.

  Example:
    >>> [chunks_per_group(n, (1, 2, 4, 8, 16)) for n in (1, 5, 15, 17, 64)]
    [1, 2, 16, 4, 16]
  """

  def padded(rung: int) -> int:
    return -(-chunks // rung) * rung

  snug = [rung for rung in ladder if 4 * padded(rung) <= 5 * chunks]
  return snug[-1] if snug else min(ladder, key=padded)
