"""`train`: a small hybrid learns to recall facts."""

import importlib

from absl import flags

from .printing import say

_LAST_STEPS = 50


def train_command(values: flags.FlagValues) -> None:
  """Trains a model on the recall task; what trains is imported late.

  Args:
    values: the flags of the command.
  """
  job = importlib.import_module("sparse_prefix_jax.training.job")
  report = job.train(values.out, steps=values.steps, seed=values.seed or 0)
  right = report["right"][-_LAST_STEPS:]
  say(
    f"{len(report['right'])} steps, {sum(right) / len(right):.1%} of the last"
    f" {len(right)} steps' answers right\nWritten: {values.out}"
  )
