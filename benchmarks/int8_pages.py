"""What keys and values in int8 save, and what they cost a trained model.

    python -m benchmarks.int8_pages --output=benchmarks/results/int8_pages.json

The demo's questions are answered by its model with pages as they are and in
int8, each without a cache and with the states of the shared documents, which
must be the same bits. `recalled` asks about more documents. A model of random
weights, whose attention sees everything, shows by how much logits move.
"""

from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from tqdm import tqdm

from benchmarks import command_line, record
from sparse_prefix_jax import HybridDecoder, PlacementPolicy, prefill, preset
from sparse_prefix_jax.contract import ColdRuns, differing_bits
from sparse_prefix_jax.demo.serving import new_cache
from sparse_prefix_jax.demo.stream import Stream, recall_stream
from sparse_prefix_jax.models.sizes import page_bytes, state_bytes
from sparse_prefix_jax.training.accuracy import recall_accuracy
from sparse_prefix_jax.training.trained import trained_model
from sparse_prefix_jax.workloads.recall.documents import RecallShape

_ANSWERS = flags.DEFINE_integer("answers", 480, "Answers, at least.", 1)
_TOKENS = flags.DEFINE_integer("tokens", 1024, "Of random weights.", 65)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")

PAGES = None, "int8"
_SHAPE = RecallShape(tokens=2048, facts=24, questions=24, distinct=True)


def _bytes(dtype: str) -> dict[str, Any]:
  """Bytes of a page and of a state of Qwen3.5-0.8B, with both kinds."""
  configs = [preset("qwen3_5_0_8b", dtype=dtype, page_dtype=x) for x in PAGES]
  pages, states = map(page_bytes, configs), map(state_bytes, configs)
  row = {"dtype": dtype, "page_bytes": [*pages], "state_bytes": [*states]}
  print(row)
  return row


def _logits(
  model: HybridDecoder, stream: Stream, placement: str
) -> list[np.ndarray]:
  """Of the last token of every prompt."""
  cache, logits = new_cache(model, PlacementPolicy(placement)), []
  for prompt in tqdm(stream.prompts, placement, leave=False):
    out = prefill(model, cache, [prompt])
    cache.release(out.sequences)
    logits.append(out.logits[0])
  return logits


def _answered(page_dtype: str | None) -> dict[str, Any]:
  """How many of the demo's questions are right, and whether a bit differs."""
  stream, model = recall_stream(), trained_model(page_dtype=page_dtype)
  cold, cached = (_logits(model, stream, x) for x in ("no_cache", "last"))
  right = [int(x.argmax()) == y for x, y in zip(cold, stream.answers or [])]
  documents = -(-_ANSWERS.value // _SHAPE.questions)
  row = {
    "page_dtype": page_dtype,
    "questions": len(right),
    "right": sum(right),
    "differing_bits": sum(map(differing_bits, cold, cached)),
    "recalled": recall_accuracy(model, _SHAPE, documents=documents)._asdict(),
  }
  print(row)
  return row


def _moved(tokens: int) -> dict[str, Any]:
  """How far logits of random weights move, against their own size."""
  config = preset("qwen3_5_0_8b_group", ladder=(16,), max_length=4096)
  weights = HybridDecoder(config, rngs=nnx.Rngs(0))
  leaves = jax.tree.leaves(weights)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, tokens)
  found = []
  for page_dtype in PAGES:
    changed = config.replace(page_dtype=page_dtype)
    model = nnx.eval_shape(lambda c=changed: HybridDecoder(c, rngs=nnx.Rngs(0)))
    model = jax.tree.unflatten(jax.tree.structure(model), leaves)
    found.append(ColdRuns(model, tokens).prefill(ids.astype(np.int32)).logits)
  exact, quantised = found
  error = np.linalg.norm(quantised - exact) / np.linalg.norm(exact)
  same = (quantised.argmax(-1) == exact.argmax(-1)).mean()
  row = {"tokens": tokens, "error": float(error), "same_id": float(same)}
  print(row)
  return row


def main(argv: list[str]) -> None:
  """Counts, asks, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  result = {
    "bytes": [_bytes(dtype) for dtype in ("float32", "bfloat16")],
    "answers": [_answered(page_dtype) for page_dtype in PAGES],
    "random_weights": _moved(_TOKENS.value),
  }
  if _OUTPUT.value:
    record.write_result(_OUTPUT.value, result)


if __name__ == "__main__":
  app.run(main)
