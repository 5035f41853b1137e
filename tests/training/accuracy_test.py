"""The weights that ship answer about names that training never saw."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.training import accuracy, job
from sparse_prefix_jax.training.accuracy import recall_accuracy
from sparse_prefix_jax.training.checkpoint import CHECKPOINT_FILE
from sparse_prefix_jax.training.curriculum import STAGES
from sparse_prefix_jax.training.trained import trained_model
from sparse_prefix_jax.training.weights import load_arrays
from sparse_prefix_jax.workloads.recall.documents import (
  RecallDocument,
  RecallShape,
)

SHAPE = RecallShape(tokens=512, facts=24, questions=24, distinct=True)


def test_the_trained_model_recalls_and_the_count_is_of_its_answers(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  model = trained_model()
  assert model.config == preset("recall")
  seen, run = [], accuracy._run()

  def noted(*arguments: jax.Array) -> object:
    seen.append(run(*arguments))
    return seen[-1]

  monkeypatch.setattr(accuracy, "_run", lambda: noted)
  found = recall_accuracy(model, SHAPE, documents=4)
  assert found.answers == 4 * 24
  assert found.right == int(np.sum([out.correct for out in seen]))
  assert found.share >= 0.97
  assert recall_accuracy(model, SHAPE, documents=1).right == int(
    seen[0].correct.sum()
  )
  other = recall_accuracy(model, SHAPE, documents=1, seed=1)
  assert not jnp.array_equal(seen[-1].loss, seen[0].loss)
  assert other.answers == 24


def test_no_documents_are_refused() -> None:
  with pytest.raises(ValueError, match="documents is 0; it must be at least 1"):
    recall_accuracy(trained_model(), SHAPE, documents=0)


def test_a_model_without_ids_for_words_is_refused() -> None:
  model = HybridDecoder(preset("tiny", vocab_size=300), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="vocab_size is 300; the recall "):
    recall_accuracy(model, SHAPE, documents=1)


@pytest.mark.slow
def test_the_first_stage_is_learned_within_200_steps(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """The rate is that of the training whose weights ship."""
  write, steps = job.recall_batch, 0

  def counted(*arguments: Any, **options: Any) -> RecallDocument:
    nonlocal steps
    steps += 1
    if steps > 200:
      raise KeyboardInterrupt
    return write(*arguments, **options)

  monkeypatch.setattr(job, "recall_batch", counted)
  with pytest.raises(KeyboardInterrupt):
    job.train(tmp_path, steps=5000)
  history = load_arrays(tmp_path / CHECKPOINT_FILE)["history"]
  assert history.shape == (200, 3)
  assert history[-1, 0] > STAGES[0].tokens
