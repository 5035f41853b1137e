"""How many answers are right, on documents that training never saw."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sparse_prefix_jax.models.decoder import HybridDecoder
from sparse_prefix_jax.training.losses import answer_loss
from sparse_prefix_jax.workloads.recall.documents import (
  RecallShape,
  recall_batch,
)
from sparse_prefix_jax.workloads.recall.vocabulary import FIRST_WORD, WORDS


class Accuracy(NamedTuple):
  """How well a model answers.

  Attributes:
    right: Answers that are right.
    answers: Questions that were asked.
  """

  right: int
  answers: int

  @property
  def share(self) -> float:
    """The share that is right.

    Example:
      >>> Accuracy(right=3, answers=4).share
      0.75
    """
    return self.right / self.answers


@functools.cache
def _run() -> jax.stages.Wrapped:
  return jax.jit(answer_loss)


def recall_accuracy(
  model: HybridDecoder,
  shape: RecallShape,
  *,
  documents: int,
  seed: int = 0,
  held_out: bool = True,
) -> Accuracy:
  """Asks about documents that are drawn for it.

  Args:
    model: What answers; the likeliest id counts.
    shape: What the documents are like.
    documents: How many.
    seed: What they are drawn from, other documents than those of a training.
    held_out: Whether their names occur in no training.

  Returns:
    How many answers were right.

  Raises:
    ValueError: If there are no documents, or the model has no ids for words.
  """
  if documents < 1:
    raise ValueError(f"documents is {documents}; it must be at least 1.")
  words, size = FIRST_WORD + len(WORDS), model.config.vocab_size
  if size < words:
    raise ValueError(
      f"vocab_size is {size}; the recall task has {words} token ids."
    )
  right = 0
  for index in tqdm(range(documents), f"{shape.tokens} tokens", leave=False):
    generator = np.random.default_rng((_EVALUATION, seed, index))
    data = recall_batch(shape, 1, generator, held_out=held_out)
    out = _run()(model, *map(jnp.asarray, data))
    right += int(out.correct.sum())
  return Accuracy(right, documents * shape.questions)


# Trainings draw from two numbers, and hence other documents.
_EVALUATION = 1
