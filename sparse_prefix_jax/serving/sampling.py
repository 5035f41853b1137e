"""What a request asks of sampling, checked, and as arrays for the device."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sparse_prefix_jax.cache.request import listed
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.runtime.row_sampler import (
  MOST_BEST,
  MOST_BIASES,
  NO_BIAS,
  NO_COUNTS,
  SamplingRows,
)
from sparse_prefix_jax.whole_numbers import check_whole, is_real

Allowed: TypeAlias = Callable[[tuple[int, ...]], Any]
"""A grammar: from the ids decoded so far to what may come next.

Bools of the size of the vocabulary, of which at least one is true.
"""

_SEEDS = 2**32
_LEAST_TEMPERATURE = 1e-4
# A float may be anything in its range; bounds of the ranges are included.
_RANGES = {
  "temperature": (0.0, math.inf),
  "top_p": (0.0, 1.0),
  "min_p": (0.0, 1.0),
  "repetition_penalty": (0.0, math.inf),
  "presence_penalty": (-math.inf, math.inf),
  "frequency_penalty": (-math.inf, math.inf),
}
_NOT_ZERO = ("top_p", "repetition_penalty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How the next ids of a request are chosen.

  What is drawn is a function of the model's logits, of these fields, of the
  sample index and of the position: neither of who else is served, nor of time.
  `runtime/row_sampler.py` says in which order the fields are applied.

  Attributes:
    temperature: 0 takes the most probable id; else from 1e-4.
    top_k: How many of the most probable ids are kept; 0 keeps all.
    top_p: Which share of the probability is kept, above 0.
    min_p: The least probability that is kept, as a share of the largest.
    repetition_penalty: Above 1 makes less probable what stands in the prompt or
      was decoded; above 0.
    presence_penalty: What an id loses once it was decoded.
    frequency_penalty: What an id loses each time that it was decoded.
    logit_bias: What is added to the logits of ids, at most 300; a mapping
      becomes pairs in the order of the ids.
    allowed: A grammar: called with the ids decoded so far, it returns bools
      [vocab], which ids may come next. None allows all.
    seed: From 0, below 2**32. The same seed draws the same ids again.
    best: How many of the most probable ids to return with their log
      probabilities, 0 to 20; that of the chosen one always is.

  Raises:
    ValueError: If a field has another type or is out of its range.

  Example:
    >>> Sampling(temperature=0.7, top_p=0.9, logit_bias={5: -2.0}).logit_bias
    ((5, -2.0),)
    >>> Sampling(top_p=0.0)
    Traceback (most recent call last):
    ValueError: top_p is 0.0; it must be a number, above 0 and at most 1.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
  allowed: Allowed | None = None
  seed: int = 0
  best: int = 0

  def __post_init__(self) -> None:
    """Refuses what cannot be meant; makes pairs of a bias."""
    for name in _RANGES:
      _check_range(name, getattr(self, name))
    if 0 < self.temperature < _LEAST_TEMPERATURE:
      raise ValueError(
        f"temperature is {self.temperature}; it must be 0, or at least "
        f"{_LEAST_TEMPERATURE}."
      )
    _check_count("top_k", self.top_k, 2**31 - 1)
    _check_count("seed", self.seed, _SEEDS - 1)
    _check_count("best", self.best, MOST_BEST)
    if self.allowed is not None and not callable(self.allowed):
      raise ValueError(
        f"allowed is {brief(self.allowed)}; it must be a function of "
        "the ids decoded so far, or None."
      )
    object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))

  @property
  def has_penalties(self) -> bool:
    """Whether it depends on the ids before; such a row needs counts."""
    return (
      self.repetition_penalty != 1
      or self.presence_penalty != 0
      or self.frequency_penalty != 0
    )

  def check_vocabulary(self, vocab_size: int) -> None:
    """Refuses a bias of an id that the model does not have.

    Args:
      vocab_size: Ids of the model.

    Raises:
      ValueError: If there is one.
    """
    for token, _ in _pairs(self.logit_bias):
      if token >= vocab_size:
        raise ValueError(
          f"logit_bias names id {token}; the vocabulary is 0 to "
          f"{vocab_size - 1}."
        )

  def allowed_after(
    self, decoded: Sequence[int], vocab_size: int
  ) -> np.ndarray | None:
    """Asks the grammar which ids may come next.

    Args:
      decoded: Ids so far.
      vocab_size: Ids of the model.

    Returns:
      Bools [vocab], or None where there is no grammar.

    Raises:
      ValueError: If the answer is no row of bools, or allows none.
    """
    if self.allowed is None:
      return None
    mask = np.asarray(self.allowed(tuple(decoded)))
    if mask.shape != (vocab_size,) or mask.dtype != bool:
      raise ValueError(
        f"allowed returned {mask.dtype} of shape {mask.shape}; it must return "
        f"bools of shape ({vocab_size},)."
      )
    if not mask.any():
      raise ValueError(
        f"allowed lets no id follow the {len(decoded)} that were decoded; at "
        "least one must be."
      )
    return mask


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingRow:
  """One row of a step: what is asked, and where it stands.

  Attributes:
    sampling: Of its request.
    sample: Which of several samples of one prompt.
    counts: Slot of its counts; needed where there are penalties.
    allowed: Which ids may come, [vocab]; None for all.
  """

  sampling: Sampling
  sample: int = 0
  counts: int = NO_COUNTS
  allowed: np.ndarray | None = None


def sampling_rows(
  rows: Sequence[SamplingRow | Sampling | None], vocab_size: int
) -> SamplingRows:
  """Makes the arrays that the device samples by.

  Args:
    rows: One per row of the logits; None for a row that is not in use.
    vocab_size: Ids of the model.

  Returns:
    NumPy arrays.

  Example:
    >>> rows = sampling_rows([Sampling(top_k=3), None], vocab_size=40)
    >>> rows.active.tolist(), rows.top_k.tolist(), rows.allowed.shape
    ([True, False], [3, 0], (2, 2))
  """
  full = [
    SamplingRow(row or Sampling()) if not isinstance(row, SamplingRow) else row
    for row in rows
  ]
  asked = [row.sampling for row in full]
  biases = [_padded(one.logit_bias) for one in asked]
  return SamplingRows(
    active=np.array([row is not None for row in rows]),
    temperature=_floats([one.temperature for one in asked]),
    top_k=np.array([one.top_k for one in asked], np.int32),
    top_p=_floats([one.top_p for one in asked]),
    min_p=_floats([one.min_p for one in asked]),
    repetition=_floats([one.repetition_penalty for one in asked]),
    presence=_floats([one.presence_penalty for one in asked]),
    frequency=_floats([one.frequency_penalty for one in asked]),
    seed=np.array([one.seed for one in asked], np.uint32),
    sample=np.array([row.sample for row in full], np.uint32),
    counts=np.array([row.counts for row in full], np.int32),
    best=np.array([one.best > 0 for one in asked]),
    bias_ids=np.stack([ids for ids, _ in biases]),
    biases=np.stack([values for _, values in biases]),
    allowed=np.stack([packed_mask(row.allowed, vocab_size) for row in full]),
  )


def packed_mask(mask: np.ndarray | None, vocab_size: int) -> np.ndarray:
  """Packs bools into words: bit i % 32 of word i // 32 is that of id i.

  Args:
    mask: Bools [vocab]; None for all true.
    vocab_size: Ids of the model.

  Example:
    >>> packed_mask(np.arange(40) == 33, 40).tolist()
    [0, 2]
  """
  words = -(-vocab_size // 32)
  if mask is None:
    return np.full(words, 2**32 - 1, np.uint32)
  bits = np.zeros(32 * words, bool)
  bits[:vocab_size] = mask
  return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _floats(values: Sequence[float]) -> np.ndarray:
  return np.array(values, np.float32)


def _padded(bias: Any) -> tuple[np.ndarray, np.ndarray]:
  """Ids and values of a bias, of the size that all have."""
  ids = np.full(MOST_BIASES, NO_BIAS, np.int32)
  values = np.zeros(MOST_BIASES, np.float32)
  ids[: len(bias)] = [token for token, _ in bias]
  values[: len(bias)] = [value for _, value in bias]
  return ids, values


def _check_range(name: str, value: Any) -> None:
  """Refuses what is no number of the range of a field."""
  low, high = _RANGES[name]
  above = name in _NOT_ZERO
  number = _as_number(value)
  inside = low <= number <= high and math.isfinite(number)
  if inside and (number > 0 or not above):
    return
  least = "above 0" if above else f"at least {low:g}"
  most = f" and at most {high:g}" if math.isfinite(high) else " and finite"
  bounds = "finite" if low == -math.inf else least + most
  raise ValueError(f"{name} is {brief(value)}; it must be a number, {bounds}.")


def _as_number(value: Any) -> float:
  """A float; NaN for what is no real number, and for a bool."""
  try:
    return float(value) if is_real(value) else math.nan
  except OverflowError:  # an integer of hundreds of digits
    return math.inf


def _check_count(name: str, value: Any, most: int) -> None:
  """Refuses what is no integer from 0 to a bound."""
  if not 0 <= check_whole(name, value) <= most:
    raise ValueError(f"{name} is {brief(value)}; it must be 0 to {most}.")


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
  """The pairs of a bias, by id."""
  given = listed(bias.items() if isinstance(bias, Mapping) else bias)
  if given is None or not all(map(_is_pair, given)):
    raise ValueError(
      f"logit_bias is {brief(bias)}; it must map ids to numbers."
    )
  pairs: dict[int, float] = {}
  for token, value in given:
    token = check_whole("logit_bias: an id", token)
    if not math.isfinite(_as_number(value)):
      raise ValueError(
        f"logit_bias of id {token} is {brief(value)}; it must be a finite "
        "number."
      )
    if token < 0 or token in pairs:
      raise ValueError(
        f"logit_bias names id {token}; ids are from 0, each once."
      )
    pairs[token] = float(value)
  if len(pairs) > MOST_BIASES:
    raise ValueError(
      f"logit_bias has {len(pairs)} ids; it may have {MOST_BIASES}."
    )
  return tuple(sorted(pairs.items()))


def _is_pair(value: Any) -> bool:
  return isinstance(value, tuple) and len(value) == 2
