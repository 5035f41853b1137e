"""The training: from new weights, or from where it was killed, to a report."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.models.presets import preset
from sparse_prefix_jax.training import curve
from sparse_prefix_jax.training.checkpoint import (
  Checkpoint,
  Run,
  load_checkpoint,
  save_checkpoint,
)
from sparse_prefix_jax.training.curriculum import STAGES, Progress
from sparse_prefix_jax.training.initialization import initialize_for_recall
from sparse_prefix_jax.training.optimization import (
  StepReport,
  TrainState,
  make_optimizer,
  make_step,
)
from sparse_prefix_jax.training.weights import named_leaves, save_arrays
from sparse_prefix_jax.workloads.recall.documents import (
  RecallShape,
  recall_batch,
)
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer_json
from sparse_prefix_jax.workloads.recall.vocabulary import VOCAB_SIZE
from sparse_prefix_jax.writable import (
  alone_in,
  replacing,
  writable_folder,
  write_json_file,
)

WEIGHTS_FILE = "model.safetensors"
"""The trained weights in bfloat16, in the folder of a training; what ships is
one of these. The checkpoint beside it has them in float32."""
TOKENIZER = "tokenizer.json"
"""Words and their ids, beside the weights."""
TOKENS_PER_STEP = 2048
"""Tokens of the documents of a step, at least one document."""

_SAVE_EVERY = 100  # steps
_MOST = 2**31


def train(
  out: str | pathlib.Path,
  *,
  steps: int,
  seed: int = 0,
  config: ModelConfig | None = None,
  stages: tuple[RecallShape, ...] = STAGES,
) -> dict[str, Any]:
  """Trains a small hybrid on the recall task, with a bar on stderr.

  A folder with a checkpoint goes on from it: parameters, optimizer and all that
  follows have the bits of a training that was never interrupted.

  Args:
    out: Folder for checkpoint.safetensors, model.safetensors, tokenizer.json,
      curve.json and curve.png; made if need be.
    steps: How many steps to take, which the rate depends on.
    seed: What weights and documents are drawn from.
    config: The model, the preset "recall" by default.
    stages: What documents are like, one stage after another.

  Returns:
    The content of curve.json: steps and seed, and for every step taken the
    tokens of a document, the loss and the share of right answers.

  Raises:
    OSError: The folder cannot be written to, or another training is writing to
      it; nothing has been computed then.
    ValueError: A number is out of its range, the folder holds the checkpoint of
      another training or a damaged one, or a loss or a weight is no longer
      finite; the last checkpoint stays then.
    MissingExtraError: What trains, saves or draws is not installed; nothing has
      been computed then.
  """
  config = config or preset("recall")
  _check(steps, seed, config, stages)
  curve.figures()  # rather told now than after an hour
  folder = writable_folder(pathlib.Path(out))
  with alone_in(folder):
    return _train(folder, Run.of(steps, seed, config, stages), config, stages)


def _train(
  folder: pathlib.Path,
  run: Run,
  config: ModelConfig,
  stages: tuple[RecallShape, ...],
) -> dict[str, Any]:
  """Trains in a folder that nobody else writes to."""
  model = HybridDecoder(config, rngs=nnx.Rngs(run.seed))
  initialize_for_recall(model)
  state = TrainState(model, make_optimizer(run.steps).init(model))
  held = load_checkpoint(folder, run, state, len(stages)) or Checkpoint(
    state, Progress(), np.zeros((0, 3), np.float32)
  )
  step = make_step(run.steps)
  with tqdm(total=run.steps, initial=held.progress.step, unit="step") as bar:
    while held.progress.step < run.steps:
      held = _advance(held, step, stages, run)
      bar.set_postfix_str(_told(held, stages), refresh=False)
      bar.update()
      if held.progress.step % _SAVE_EVERY == 0:
        save_checkpoint(folder, run, held)
  save_checkpoint(folder, run, held)
  return _finish(folder, run, held)


def _check(
  steps: int, seed: int, config: ModelConfig, stages: tuple[RecallShape, ...]
) -> None:
  """Refuses what would end in the middle of a training, or teach nonsense."""
  for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
    if not is_int(value) or not least <= value < _MOST:
      raise ValueError(
        f"{name} is {value!r}; it must be an int of {least} to {_MOST - 1}."
      )
  if not stages:
    raise ValueError("stages is empty; a training needs one at least.")
  if len(stages) > len(STAGES):
    raise ValueError(
      f"stages has {len(stages)} entries; there are at most {len(STAGES)}."
    )
  longest = config.numerics.max_length
  for index, shape in enumerate(stages):
    if shape.tokens > longest:
      raise ValueError(
        f"stages[{index}] has tokens = {shape.tokens}; max_length of the "
        f"configuration is {longest}."
      )
  if config.vocab_size < VOCAB_SIZE:
    raise ValueError(
      f"vocab_size is {config.vocab_size}; the recall task needs {VOCAB_SIZE}."
    )


def _advance(
  held: Checkpoint,
  step: Callable[..., tuple[TrainState, StepReport]],
  stages: tuple[RecallShape, ...],
  run: Run,
) -> Checkpoint:
  """Takes one step, with documents drawn from its number and the seed.

  Raises:
    ValueError: If its loss is not finite: all that follows would be so too.
  """
  shape = stages[held.progress.stage]
  generator = np.random.default_rng((run.seed, held.progress.step))
  batch = max(1, TOKENS_PER_STEP // shape.tokens)
  documents = recall_batch(shape, batch, generator, held_out=False)
  state, report = step(held.state, *map(jnp.asarray, documents))
  seen = np.array([[shape.tokens, report.loss, report.right]], np.float32)
  if not np.isfinite(report.loss):
    raise ValueError(
      f"loss is {report.loss} at step {held.progress.step + 1}; the training "
      "ends, and out keeps the last checkpoint."
    )
  return Checkpoint(
    state,
    held.progress.after(
      float(report.right), steps=run.steps, stages=len(stages)
    ),
    np.concatenate([held.history, seen]),
  )


def _told(held: Checkpoint, stages: tuple[RecallShape, ...]) -> str:
  """What stands behind the bar."""
  tokens = stages[held.progress.stage].tokens
  return f"{tokens} tokens, {held.progress.accuracy:.0%} right"


def _finish(folder: pathlib.Path, run: Run, held: Checkpoint) -> dict[str, Any]:
  """Writes weights, tokenizer and curve."""
  weights = named_leaves(held.state.model)
  rounded = {name: x.astype(jnp.bfloat16) for name, x in weights.items()}
  save_arrays(folder / WEIGHTS_FILE, rounded)
  with replacing(folder / TOKENIZER) as file:
    file.write(recall_tokenizer_json().encode())
  tokens, loss, right = held.history.T.tolist()
  report = {"steps": run.steps, "seed": run.seed}
  report |= {"tokens": tokens, "loss": loss, "right": right}
  write_json_file(folder / "curve.json", report, indent=0)
  with replacing(folder / "curve.png") as file:
    curve.draw_curve(report, file)
  return report
