"""Sampling for a scheduler: what each seat asks for, and what it has drawn."""

import dataclasses

import jax
import numpy as np

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.runtime.row_sampler import NO_COUNTS, Sampled
from sparse_prefix_jax.serving.sampling import (
  Sampling,
  SamplingRow,
  sampling_rows,
)
from sparse_prefix_jax.serving.scheduler.sampler import SampleRows


@dataclasses.dataclass(eq=False)
class _Seat:
  """A request that draws.

  Attributes:
    sampling: What it asks for.
    sample: Which of several samples of its prompt it is.
    answer: Ids drawn so far, where its grammar has to know them.
  """

  sampling: Sampling
  sample: int
  answer: list[int]


class DeviceSampler:
  """Draws ids as `Sampling` says; none stands for the most probable ones.

  Args:
    config: Of the model.
    seats: How many requests run at once.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> DeviceSampler(preset("tiny"), 4).check(Sampling(temperature=0.5))
    False
  """

  def __init__(self, config: ModelConfig, seats: int) -> None:
    """Nobody draws yet."""
    self._vocab, self._seats = config.vocab_size, seats
    self._sitting: dict[int, _Seat] = {}
    # One place until somebody has penalties: a count per id is many bytes.
    self._counts = sampler.no_counts(self._vocab)

  def check(self, sampling: object) -> bool:
    """Refuses what is no choice of sampling.

    Returns:
      Whether there is a grammar, which has to know the ids before.

    Raises:
      ValueError: If it is neither None nor a Sampling, alone or with the number
        of a sample, or names an id that the model does not have.
    """
    asked, _ = self._read(sampling)
    asked.check_vocabulary(self._vocab)
    return asked.allowed is not None

  def begin(
    self, seat: int, sampling: object, prompt: np.ndarray, answer: np.ndarray
  ) -> None:
    """A request takes a seat; what it drew before counts."""
    asked, sample = self._read(sampling)
    self._sitting[seat] = _Seat(asked, sample, answer.tolist())
    if not asked.has_penalties:
      return
    if self._counts.shape[0] < self._seats:
      self._counts = sampler.no_counts(self._vocab, self._seats)
    row = sampler.counts_of(prompt, answer, self._vocab)
    self._counts = sampler.set_counts(self._counts, np.int32(seat), row)

  def note(self, seat: int, token: int) -> None:
    """An id of a seat was read."""
    self._sitting[seat].answer.append(token)

  def sample(self, logits: jax.Array, rows: SampleRows) -> Sampled:
    """Draws one id for every row."""
    asked = [self._row(seat) for seat in rows.seat.tolist()]
    drawn, self._counts = sampler.sample(
      logits, sampling_rows(asked, self._vocab), self._counts, rows.position
    )
    return drawn

  def _row(self, seat: int) -> SamplingRow | None:
    """What a seat asks for; None past the end."""
    if seat >= self._seats:
      return None
    here = self._sitting[seat]
    counts = seat if here.sampling.has_penalties else NO_COUNTS
    allowed = here.sampling.allowed_after(here.answer, self._vocab)
    return SamplingRow(here.sampling, here.sample, counts, allowed)

  def _read(self, sampling: object) -> tuple[Sampling, int]:
    """What is asked, and for which sample."""
    asked = sampling if isinstance(sampling, tuple) else (sampling, 0)
    if len(asked) == 2:
      first, sample = asked
      first = Sampling() if first is None else first
      whole = isinstance(sample, int) and not isinstance(sample, bool)
      if isinstance(first, Sampling) and whole and 0 <= sample < 2**32:
        return first, sample
    raise ValueError(
      f"sampling is {sampling!r}; it must be a Sampling, None, or a Sampling "
      "and the number of a sample."
    )
