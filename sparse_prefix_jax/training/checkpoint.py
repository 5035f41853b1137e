"""A training that was killed goes on with the same bits.

A checkpoint holds parameters, the state of the optimizer and the progress.
Documents are drawn from seed and step alone, so nothing else has a state.
"""

import json
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from sparse_prefix_jax.models.checkpoint.header import damaged
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.training.curriculum import Progress
from sparse_prefix_jax.training.optimization import TrainState
from sparse_prefix_jax.training.weights import (
  array_like,
  filled,
  load_arrays,
  named_leaves,
  save_arrays,
)
from sparse_prefix_jax.workloads.recall.documents import RecallShape

CHECKPOINT_FILE = "checkpoint.safetensors"
"""The name of the file in the folder of a training."""


class Run(NamedTuple):
  """Which training it is: a checkpoint of another one is refused.

  Attributes:
    steps: How many steps it has, which the rate depends on.
    seed: What everything is drawn from.
    task: A checksum of the model's configuration and of the stages.
  """

  steps: int
  seed: int
  task: int

  @classmethod
  def of(
    cls,
    steps: int,
    seed: int,
    config: ModelConfig,
    stages: tuple[RecallShape, ...],
  ) -> "Run":
    """Says which training these make.

    >>> from sparse_prefix_jax import preset
    >>> Run.of(9, 0, preset("tiny"), ()) == Run.of(9, 0, preset("demo"), ())
    False
    """
    task = json.dumps(config.to_json(), sort_keys=True) + repr(stages)
    return cls(steps, seed, zlib.crc32(task.encode()))


class Checkpoint(NamedTuple):
  """All that a training consists of between two steps.

  Attributes:
    state: Parameters and optimizer.
    progress: Where it is.
    history: For every step the tokens of a document, the loss and the share of
      right answers. float32 [steps 3]
  """

  state: TrainState
  progress: Progress
  history: np.ndarray


def save_checkpoint(
  folder: pathlib.Path, run: Run, checkpoint: Checkpoint
) -> None:
  """Writes the checkpoint of a training, in the place of the one before.

  Args:
    folder: The folder of the training.
    run: Which training it is.
    checkpoint: What is written.

  Raises:
    OSError: If it cannot be written; the one before is whole then.
    ValueError: If a number is not finite; the one before stays then.
    MissingExtraError: If the package `safetensors` is not installed.
  """
  state, progress, history = checkpoint
  arrays = named_leaves(state._asdict()) | {"history": history}
  for name, array in arrays.items():
    if not np.isfinite(np.asarray(array, np.float32)).all():
      raise ValueError(
        f"{name} is not finite after step {progress.step}; the training ends, "
        f"and {folder} keeps the checkpoint before it."
      )
  for tree in (run, progress):
    arrays |= {name: np.asarray(x) for name, x in tree._asdict().items()}
  save_arrays(folder / CHECKPOINT_FILE, arrays)


def load_checkpoint(
  folder: pathlib.Path, run: Run, state: TrainState, stages: int
) -> Checkpoint | None:
  """Reads the checkpoint of a training.

  Args:
    folder: The folder of the training.
    run: Which training it is.
    state: What gives names, shapes and types.
    stages: How many stages the training has.

  Returns:
    What was written; None where there is no checkpoint.

  Raises:
    ValueError: If the file is damaged, a link to nothing, or is of another
      training.
    MissingExtraError: If the package `safetensors` is not installed.
  """
  path = folder / CHECKPOINT_FILE
  if path.is_symlink() and not path.exists():
    raise ValueError(f"{path} is a link to what is not there.")
  if not path.exists():
    return None
  arrays = load_arrays(path)
  for name, asked in run._asdict().items():
    held = array_like(np.asarray(asked), arrays, name, str(path)).item()
    if name == "task" and held != asked:
      raise ValueError(
        f"{path} is of another model or other stages; train in another folder."
      )
    if held != asked:
      raise ValueError(
        f"{name} is {asked}, and {path} has {held}; go on with that, or train "
        "in another folder."
      )
  tree = filled(state._asdict(), arrays, str(path))
  progress, history = _progress(path, run, arrays, stages)
  return Checkpoint(TrainState(**tree), progress, history)


def _progress(
  path: pathlib.Path, run: Run, arrays: dict[str, np.ndarray], stages: int
) -> tuple[Progress, np.ndarray]:
  """Reads where a training is, and refuses what its history does not make.

  Raises:
    ValueError: If the two are not of one training.
  """
  fields = Progress()._asdict().items()
  held = Progress(
    **{
      name: array_like(np.asarray(x), arrays, name, str(path)).item()
      for name, x in fields
    }
  )
  steps = max(0, min(held.step, run.steps))
  history = array_like(
    np.zeros((steps, 3), np.float32), arrays, "history", str(path)
  )
  reached = Progress()
  for right in history[:, 2]:
    reached = reached.after(float(right), steps=run.steps, stages=stages)
  if reached != held:
    raise damaged(path, f"its history leads to {reached}, and it says {held}")
  return held, history
