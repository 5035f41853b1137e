"""What is computed of one request: the host's word for a part of a plan."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
  """What is to be computed of one request.

  Attributes:
    tokens: The token ids from `start` on, at least one where the segment is
      to be run; nobody knows those of hashed blocks, and there are none.
    start: The lattice position of the first of them.
    read: The slot that holds the carry at `start`, or ZERO.
    writes: The slot to write at each position that is named: lattice points
      after `start`, and the end.
    spill: The slot that carries the request over the end of a program.
    pages: The pages of chunks 0, 1, ... to the last one computed.
    stop: The position after the last token; by default that of `tokens`.
  """

  tokens: np.ndarray
  start: int
  read: int
  writes: Mapping[int, int]
  spill: int
  pages: Sequence[int]
  stop: int = -1

  def __post_init__(self) -> None:
    """Derives the end from the tokens where it is not given."""
    if self.stop < 0:
      object.__setattr__(self, "stop", self.start + len(self.tokens))
