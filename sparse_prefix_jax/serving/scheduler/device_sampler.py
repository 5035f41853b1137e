"""Sampling for a scheduler: what each seat asks for, and what it has drawn."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_prefix_jax.kernels.implementations import current_device
from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.runtime import sampler
from sparse_prefix_jax.runtime.row_sampler import (
  NO_COUNTS,
  Sampled,
  SamplingRows,
)
from sparse_prefix_jax.serving.sampling import (
  Sampling,
  SamplingRow,
  sampling_rows,
)
from sparse_prefix_jax.serving.scheduler.sampler import SampleRows
from sparse_prefix_jax.whole_numbers import check_whole


@dataclasses.dataclass(eq=False)
class _Seat:
  """A request that draws.

  Attributes:
    sampling: What it asks for.
    sample: Which of several samples of its prompt it is.
    answer: Ids drawn so far, where its grammar has to know them.
    allowed: What its grammar lets come next; None where it has none.
  """

  sampling: Sampling
  sample: int
  answer: list[int]
  allowed: np.ndarray | None


class _Asked(NamedTuple):
  """What the rows of a program ask for.

  Attributes:
    key: What it was made of.
    rows: As arrays.
    greedy: Whether there is a GPU and nobody needs more than the largest logit.
  """

  key: tuple[Any, ...]
  rows: SamplingRows
  greedy: bool


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
    self._last: dict[int, _Asked] = {}

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
    drawn = answer.tolist()
    allowed = asked.allowed_after(drawn, self._vocab)
    self._sitting[seat] = _Seat(asked, sample, drawn, allowed)
    if not asked.has_penalties:
      return
    if self._counts.shape[0] < self._seats:
      self._counts = sampler.no_counts(self._vocab, self._seats)
    row = sampler.counts_of(prompt, answer, self._vocab)
    self._counts = sampler.set_counts(self._counts, np.int32(seat), row)

  def note(self, seat: int, token: int) -> None:
    """An id of a seat was read; its grammar is asked what may follow.

    Here and not where the id is drawn: a grammar that fails is the fault of
    one, and a program draws for many.
    """
    here = self._sitting[seat]
    here.answer.append(token)
    here.allowed = here.sampling.allowed_after(here.answer, self._vocab)

  def sample(self, logits: jax.Array, rows: SampleRows) -> Sampled:
    """Draws one id for every row."""
    asked = self._asked([self._row(seat) for seat in rows.seat.tolist()])
    drawn, self._counts = sampler.sample(
      logits, asked.rows, self._counts, rows.position, greedy=asked.greedy
    )
    return drawn

  def _asked(self, rows: list[SamplingRow | None]) -> _Asked:
    """What rows ask for, as arrays.

    As long as nobody comes or goes, what was asked last serves, which is on the
    device; what a grammar allows changes with each id.
    """
    if any(row is not None and row.allowed is not None for row in rows):
      return _Asked((), sampling_rows(rows, self._vocab), False)
    key = tuple(row and (row.sampling, row.sample, row.counts) for row in rows)
    last = self._last.get(len(rows))
    if last is not None and last.key == key:
      return last
    made = sampling_rows(rows, self._vocab)
    greedy = current_device().platform == "gpu" and are_greedy(made)
    self._last[len(rows)] = _Asked(key, jax.device_put(made), greedy)
    return self._last[len(rows)]

  def _row(self, seat: int) -> SamplingRow | None:
    """What a seat asks for; None past the end."""
    if seat >= self._seats:
      return None
    here = self._sitting[seat]
    counts = seat if here.sampling.has_penalties else NO_COUNTS
    return SamplingRow(here.sampling, here.sample, counts, here.allowed)

  def _read(self, sampling: object) -> tuple[Sampling, int]:
    """What is asked, and for which sample."""
    asked = sampling if isinstance(sampling, tuple) else (sampling, 0)
    if len(asked) == 2:
      first, sample = asked
      first = Sampling() if first is None else first
      sample = check_whole("sampling: the sample", sample)
      if isinstance(first, Sampling) and 0 <= sample < 2**32:
        return first, sample
    raise ValueError(
      f"sampling is {brief(sampling)}; it must be a Sampling, None, or a "
      "Sampling and the number of a sample."
    )


def are_greedy(rows: SamplingRows) -> bool:
  """Whether nobody needs more than the largest logit."""
  drawn = np.asarray(rows.temperature) > 0
  return not (drawn | (np.asarray(rows.counts) >= 0) | rows.best).any()
