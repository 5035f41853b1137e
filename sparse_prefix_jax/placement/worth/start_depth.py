"""How far from their start prompts leave each other: `StartDepth`.

Prompts that are made alike (a template, examples and a question; a document of
one kind and any question) leave each other at the same depth, however long they
are. Where that is so, the first prompt of a new kin can keep a state there
before a second one has come to show where it leaves.
"""

import numpy as np

from sparse_prefix_jax.placement.worth.fading_counts import (
  FARTHEST,
  FadingCounts,
)

_FEWEST = 10.0


class StartDepth(FadingCounts):
  """Counts of depths at which what was known was left, and nobody expected it.

  >>> depths = StartDepth()
  >>> for depth in (24, 24, 4, 24, 25, 25) * 2:
  ...   depths.observe(depth)
  >>> depths.best()
  24
  """

  def best(self) -> int | None:
    """Returns the depth in blocks at which one state would have spared most.

    Whoever leaves at that depth or deeper is spared it, the others nothing.
    Where that is less than half of what they had in common, or fewer than ten
    were seen lately, there is no such depth: None.
    """
    depths, counts = np.arange(FARTHEST), self.counts[:FARTHEST]
    spared = depths * np.cumsum(counts[::-1])[::-1]
    best = int(spared.argmax())
    half = 2 * spared[best] >= counts @ depths
    return best if best and half and self.counts.sum() >= _FEWEST else None
