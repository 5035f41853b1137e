"""From short documents to long ones: the next stage comes when one is learned.

A model that begins with long documents finds no gradient to follow: nothing
tells it yet what to keep. A stage that is not learned ends nevertheless, so
that the last one has its share of the steps.
"""

from typing import NamedTuple

from sparse_prefix_jax.workloads.recall.documents import RecallShape

STAGES = tuple(
  RecallShape(tokens=tokens, facts=facts, questions=questions)
  for tokens, facts, questions in (
    (128, 5, 10),
    (192, 8, 13),
    (256, 12, 18),
    (512, 24, 24),
    (1024, 40, 32),
    (2048, 64, 32),
  )
)
"""What documents of each stage are like."""

ADVANCE_AT = 0.88
"""The running share of right answers at which the next stage begins."""

LATEST = (0.25, 0.3, 0.35, 0.45, 0.55)
"""The share of all steps after which the next stage begins at the latest."""

_DECAY = 0.95  # of the running share, a step
_LEAST_STEPS = 30
_AFTER = 0.7  # what is left of the running share when a stage begins


class Progress(NamedTuple):
  """Where the training is.

  Attributes:
    step: Steps taken.
    stage: Which stage the next document is of.
    stage_steps: Steps taken in this stage.
    accuracy: The running share of right answers.
  """

  step: int = 0
  stage: int = 0
  stage_steps: int = 0
  accuracy: float = 0.0

  def after(
    self, right: float, *, steps: int, stages: int = len(STAGES)
  ) -> "Progress":
    """Takes a step into account.

    Args:
      right: The share of right answers of its documents.
      steps: How many steps the training has.
      stages: How many stages there are, at most `len(STAGES)`.

    Returns:
      Where the training is after it.

    Example:
      >>> Progress(stage_steps=30, accuracy=0.9).after(1.0, steps=900).stage
      1
      >>> Progress(stage_steps=3, accuracy=0.9).after(1.0, steps=900).stage
      0
    """
    accuracy = _DECAY * self.accuracy + (1 - _DECAY) * right
    step, here = self.step + 1, self.stage_steps + 1
    if self.stage < stages - 1:
      ready = accuracy > ADVANCE_AT and here > _LEAST_STEPS
      if ready or step >= LATEST[self.stage] * steps:
        return Progress(step, self.stage + 1, 0, _AFTER * accuracy)
    return Progress(step, self.stage, here, accuracy)
