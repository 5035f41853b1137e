"""What a simulated store has to know of a model: bytes, costs, lengths."""

from dataclasses import dataclass

from sparse_prefix_jax.kinds import brief, check_class
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.cost import PrefillCost, prefill_flops
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.whole_numbers import check_at_least, is_whole


@dataclass(frozen=True)
class ModelSizes:
  """Bytes of what a cache holds, for one model.

  Attributes:
    state_bytes: One state checkpoint, all recurrent layers together.
    page_bytes: Keys and values of one lattice block, all attention layers
      together.
    cost: What prefill costs, which learned placements spare; None counts
      tokens.
    max_length: Tokens of the longest sequence that the model takes.
    probed: Blocks that its largest program computes; a server that moves to
      another share probes it in free pages.
    model: Whose sizes these are, for a report.

  Raises:
    ValueError: If a size is no integer or negative, a state has no bytes, or
      another field is of another kind.

  >>> ModelSizes(state_bytes=1000, page_bytes=10).max_length
  0
  """

  state_bytes: int
  page_bytes: int
  cost: PrefillCost | None = None
  max_length: int = 0
  probed: int = 16
  model: str | None = None

  def __post_init__(self) -> None:
    """Checks sizes, and what is of a kind."""
    both = is_whole(self.state_bytes) and is_whole(self.page_bytes)
    if not both or self.state_bytes < 1 or self.page_bytes < 0:
      raise ValueError(
        "state_bytes must be a positive integer and page_bytes an integer of at"
        f" least 0, got {brief(self.state_bytes)} and {brief(self.page_bytes)}"
      )
    if self.cost is not None:
      check_class("cost", self.cost, PrefillCost, "of `prefill_flops`")
    check_at_least("max_length", self.max_length, 0)
    check_at_least("probed", self.probed, 1)
    if self.model is not None:
      check_class("model", self.model, str)

  @classmethod
  def of_model(
    cls, config: ModelConfig, block: int, name: str | None = None
  ) -> "ModelSizes":
    """Returns what a model keeps, and what its prefill costs.

    Args:
      config: The configuration of the model.
      block: Tokens of a lattice block, which may differ from the model's own.
      name: What the model is called, if it is to be told.

    Raises:
      ValueError: If an argument is of another kind, or the block has no tokens.

    >>> from sparse_prefix_jax import preset
    >>> ModelSizes.of_model(preset("tiny"), block=128).page_bytes
    65536
    """
    block = check_at_least("block", block, 1)
    pages, numerics = page_bytes(config) * block, config.numerics
    return cls(
      state_bytes(config),
      pages // numerics.chunk,
      prefill_flops(config),
      numerics.max_length,
      -(-max(numerics.ladder) * numerics.chunk // block),
      _told(name, config),
    )


def _told(name: str | None, config: ModelConfig) -> str | None:
  """The name of a model, with the types of what it keeps."""
  if name is None:
    return None
  check_class("name", name, str)
  numerics = config.numerics
  pages = numerics.page_dtype and f", pages in {numerics.page_dtype}"
  return f"{name} in {numerics.dtype}{pages or ''}"
