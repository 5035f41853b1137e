"""How well a trained model recalls, and what its gradient keeps in memory.

    python -m benchmarks.recall --output=benchmarks/results/recall.json

Names occur in no training. Every question of a document asks for another fact;
chance is a guess among the values of its kind that the document states, below 2
percent. Memory is what XLA plans (`memory_analysis`) for the gradient of one
document, in segments, beyond its ids and five copies of its keys and values:
those after it, their gradient and what is in flight between two segments.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from benchmarks import command_line, record
from sparse_prefix_jax import HybridDecoder, preset
from sparse_prefix_jax.training.accuracy import recall_accuracy
from sparse_prefix_jax.training.segments import (
  Labelled,
  segment_length,
  segmented_gradient,
)
from sparse_prefix_jax.training.trained import trained_model
from sparse_prefix_jax.training.weights import load_weights
from sparse_prefix_jax.workloads.recall.documents import RecallShape

_WEIGHTS = flags.DEFINE_string(
  "weights", None, "Weights of the preset `recall`; by default what ships."
)
_ANSWERS = flags.DEFINE_integer("answers", 2000, "Answers, at least.", 1)
_LENGTHS = flags.DEFINE_list("lengths", ["2048", "8192", "32768"], "Tokens.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

SHAPES = tuple(
  RecallShape(tokens=tokens, facts=facts, questions=24, distinct=True)
  for tokens, facts in ((2048, 24), (2048, 64), (8192, 24))
)


def _model() -> HybridDecoder:
  if _WEIGHTS.value is None:
    return trained_model()
  model = HybridDecoder(preset("recall"), rngs=nnx.Rngs(0))
  return load_weights(Path(_WEIGHTS.value), model)


def _accuracy(model: HybridDecoder, shape: RecallShape) -> dict[str, Any]:
  documents = -(-_ANSWERS.value // shape.questions)
  found = recall_accuracy(model, shape, documents=documents)
  row = {"tokens": shape.tokens, "facts": shape.facts} | found._asdict()
  print(row | {"share": found.share})
  return row | {"share": found.share}


def _memory(tokens: int) -> dict[str, Any]:
  """What the gradient of one document takes, in bytes; nothing is run."""
  model = HybridDecoder(preset("recall", max_length=tokens), rngs=nnx.Rngs(0))
  carry = model.initialize_carry(1, tokens)
  ids = jnp.zeros((1, tokens), jnp.int32)
  data = Labelled(ids, ids, jnp.zeros((1, tokens), jnp.float32))
  compiled = jax.jit(segmented_gradient).lower(model, carry, data).compile()
  pages = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.pages))
  inputs = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
  memory: Any = compiled.memory_analysis()
  total = memory.temp_size_in_bytes
  row = {
    "tokens": tokens,
    "segment": segment_length(tokens, model.config.numerics.chunk),
    "temporary_bytes": total,
    "keys_values_bytes": pages,
    "inputs_bytes": inputs,
    "beyond_bytes": total - 5 * pages - inputs,
  }
  print(row)
  return row


def main(argv: list[str]) -> None:
  """Asks, counts, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    model = _model()
    lengths = command_line.whole_numbers(_LENGTHS, multiple_of=64)
    command_line.writable(_OUTPUT)
  result = {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    "accuracy": [_accuracy(model, shape) for shape in SHAPES],
    "memory": [_memory(tokens) for tokens in lengths],
  }
  if _OUTPUT.value:
    record.write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
