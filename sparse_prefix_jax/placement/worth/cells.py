"""Which candidates are alike: the cells that hazards are counted in.

A cell is a combination of six facts, from the one that says most to the one
that says least. What is known of few candidates leans on those with which they
share the leading facts (`hazards`).

    kind     what the candidate was proposed as, one of `Kind`
    passes   how often requests went through it: 0, 1, 2-3, 4-7, 8 and more
    passed   whether it is an end that the last request through it went beyond:
             a turn that was gone on from is seldom asked again, one that was
             asked last may be, again and again
    turn     how many ends of prompts lay on the way to it, binned alike
    gap      log2 of the time between its visits, a running mean: unknown, below
             2, 4, 6, 8, or more
    depth    tokens before it: below 2,048, 8,192, 32,768, or more
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float64, Int64

UNKNOWN = -1.0
"""The gap of a candidate of which nobody knows how often it is visited."""

_COUNTS = np.array([1, 2, 4, 8])
_GAPS = np.array([2, 4, 6, 8])
_TOKENS = np.array([2048, 8192, 32768])


class Kind(IntEnum):
  """What a candidate was proposed as; the lowest where there are several.

  Attributes:
    END: Where a prompt ended: a conversation may go on from here.
    BRANCH: Where a request left what was known, or an anchor that it named.
    OFFSET: As far before the end of a prompt as earlier ones were left.
    NEXT_OFFSET: The second such distance, if two are chosen.
    DYADIC: At 1, 2, 4, ... blocks, proposed while there is room for anything.
    START_DEPTH: As far from the start as most prompts left each other.
  """

  END = 1
  BRANCH = 2
  OFFSET = 3
  NEXT_OFFSET = 4
  DYADIC = 5
  START_DEPTH = 6


# NumPy compares with numbers in a tenth of the time that an enumeration takes.
_END = int(Kind.END)

SHAPE = (len(Kind), 5, 2, 5, 6, 4)
"""How many values each of the six facts has."""

CELLS = int(np.prod(SHAPE))
"""How many cells there are."""


def cells_of(
  kind: Int64[np.ndarray, "n"],
  passes: Int64[np.ndarray, "n"],
  beyond: Bool[np.ndarray, "n"],
  turn: Int64[np.ndarray, "n"],
  gap: Float64[np.ndarray, "n"],
  tokens: Int64[np.ndarray, "n"],
) -> Int64[np.ndarray, "n"]:
  """Returns the cell of each candidate.

  Args:
    kind: Values of `Kind`.
    passes: How often requests went through it.
    beyond: Whether the last one went further.
    turn: How many ends of prompts lay on the way.
    gap: log2 of requests between visits, or `UNKNOWN`.
    tokens: Tokens before it.

  Returns:
    Numbers in [0, CELLS).

  >>> one = np.array([1])
  >>> cells_of(
  ...   one, one, one > 1, one, np.array([UNKNOWN]), 4096 * one
  ... ).tolist()
  [265]
  """
  facts = (
    kind - 1,
    _COUNTS.searchsorted(passes, "right"),
    (kind == _END) & beyond,
    _COUNTS.searchsorted(turn, "right"),
    np.where(gap < 0, 0, 1 + _GAPS.searchsorted(gap, "right")),
    _TOKENS.searchsorted(tokens, "right"),
  )
  cells = facts[0]
  for fact, values in zip(facts[1:], SHAPE[1:]):
    cells = cells * values + fact
  return cells
