"""How ids are chosen on the device: the seam of the scheduler to sampling."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

from sparse_prefix_jax.runtime.row_sampler import Sampled


class SampleRows(NamedTuple):
  """Whose logits the rows of a call are.

  Attributes:
    seat: Seat of the request of each row, as `begin` was told; a free row has
      the number of seats, which lies past the end. [b]
    position: Where the id that is chosen will stand, from the start of the
      prompt. [b]
  """

  seat: np.ndarray
  position: np.ndarray


@runtime_checkable
class Sampler(Protocol):
  """Chooses ids from logits that stay on the device.

  What it chooses must be a function of the logits of a row, of what `begin` was
  told of its seat, of the ids chosen for it since, and of the position: never
  of the row, the seat's number, or the step. Then ids do not depend on who else
  is served.
  """

  def check(self, sampling: object) -> bool:
    """Refuses what is no choice of sampling.

    Returns:
      Whether an id can be chosen only after the one before it was noted.

    Raises:
      ValueError: One sentence on what is wrong.
    """
    ...

  def begin(
    self, seat: int, sampling: object, prompt: np.ndarray, answer: np.ndarray
  ) -> None:
    """A request takes a seat, at first or after it had made room.

    Args:
      seat: Its number.
      sampling: As it was submitted.
      prompt: Ids, int32. [t]
      answer: Ids that it has chosen so far, int32. [t]
    """
    ...

  def note(self, seat: int, token: int) -> None:
    """An id that was chosen for a seat was read, and did not end its request.

    What raises here, as in `begin`, ends that request and no other.

    Args:
      seat: Its number.
      token: The id.
    """
    ...

  def sample(self, logits: Array, rows: SampleRows) -> Sampled:
    """Chooses one id for every row, by programs that are dispatched only.

    Args:
      logits: Float32, on the device; always as many rows. [b vocab]
      rows: Whose they are.
    """
    ...
