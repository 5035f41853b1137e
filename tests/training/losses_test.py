"""The loss of answers against a plain reading of every prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_prefix_jax import HybridDecoder
from sparse_prefix_jax.training.losses import answer_loss
from sparse_prefix_jax.workloads.recall.documents import recall_batch
from tests.training import models


def test_only_answers_count_and_each_is_predicted_from_before_it():
  model = HybridDecoder(models.CONFIG, rngs=nnx.Rngs(0))
  data = recall_batch(
    models.STAGES[0], 2, np.random.default_rng(0), held_out=False
  )
  run = jax.jit(answer_loss)
  out = run(model, *map(jnp.asarray, data))
  scan = jax.jit(lambda model, carry, ids: model.scan(carry, ids).y)
  y = scan(model, model.initialize_carry(2, 128), jnp.asarray(data.token_ids))
  losses, right = [], []
  for row, answers in enumerate(data.answers):
    logits = np.asarray(model.head(y[row, answers - 1]), np.float64)
    asked = data.token_ids[row, answers]
    shifted = logits - logits.max(axis=1, keepdims=True)
    scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    losses.append(-scores[np.arange(len(asked)), asked])
    right.append(logits.argmax(axis=1) == asked)
  assert np.allclose(out.loss, np.mean(losses), rtol=1e-5)
  assert np.array_equal(out.correct, right)
  # An answer is no input of its own prediction.
  last = data.token_ids.copy()
  last[:, data.answers[:, -1]] += 1
  changed = run(model, jnp.asarray(last), jnp.asarray(data.answers[:, :-1]))
  same = run(
    model, jnp.asarray(data.token_ids), jnp.asarray(data.answers[:, :-1])
  )
  assert changed.loss == same.loss


@pytest.mark.usefixtures("unchecked_types")
def test_answers_that_are_none_are_refused_or_nan():
  model = HybridDecoder(models.CONFIG, rngs=nnx.Rngs(0))
  ids = jnp.asarray(np.arange(256).reshape(2, 128))

  def loss(answers, ids=ids, model=model):
    return answer_loss(model, ids, answers).loss

  for answers, sentence in (
    (np.array([[0], [5]]), "answers holds 0; a position is 1 to 127"),
    (np.array([[5], [128]]), "answers holds 128; a position is 1 to 127"),
    (np.array([[5.0], [6.0]]), "answers has dtype float64; it must hold int"),
    (np.array([5, 6]), r"answers of answer_loss has shape \(2,\); it must"),
    (np.array([[5]]), "b is 2 elsewhere"),
  ):
    with pytest.raises(ValueError, match=sentence):
      loss(answers)
  with pytest.raises(ValueError, match="token_ids of answer_loss is a list"):
    loss(np.array([[5], [6]]), ids.tolist())
  with pytest.raises(ValueError, match="model is None; it must be "):
    loss(np.array([[5], [6]]), model=None)
  traced = jax.jit(lambda answers: loss(answers))
  # The last token would predict what stands before the first.
  for at in (0, 128):
    assert np.isnan(traced(np.array([[at], [5]])))
  assert np.isfinite(traced(np.array([[1], [127]])))
