"""Logits of a loaded model for one prompt, without a cache."""

import numpy as np

from sparse_prefix_jax import load_pretrained
from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks
from sparse_prefix_jax.runtime import programs

CHUNK, ROWS = 16, 64
CHOICES = {"chunk": CHUNK, "ladder": (4,), "head_rows": ROWS}
CHOICES |= {"max_length": 512, "dtype": "float32"}
"""What makes one program of 64 rows serve the whole prompt."""


def loaded_logits(directory, tokens, **changes):
  """Loads a directory and computes the logits of up to 64 tokens.

  Args:
    directory: A Hugging Face directory.
    tokens: Ids of the prompt. [t]
    **changes: Fields of `ModelConfig`, beside CHOICES.

  Returns:
    Float32. [t vocabulary]
  """
  model, _ = load_pretrained(directory, **(CHOICES | changes))
  return model_logits(model, tokens)


def model_logits(model, tokens):
  """Logits of up to 64 tokens, of a model with CHOICES. [t vocabulary]"""
  lengths = np.clip(len(tokens) - CHUNK * np.arange(4), 0, CHUNK)
  chunks = Chunks(
    read=np.array([ZERO, CARRY, CARRY, CARRY], np.int32),
    write=np.full(4, NONE, np.int32),
    length=lengths.astype(np.int32),
    position=np.arange(4, dtype=np.int32) * CHUNK,
    request=np.zeros(4, np.int32),
  )
  table = np.zeros((4, 8), np.int32)
  table[0, :4] = np.arange(4)
  padded = np.pad(tokens, (0, ROWS - len(tokens))).reshape(4, CHUNK)
  group = programs.Group(padded.astype(np.int32), chunks, table)
  frozen = programs.freeze(model)
  pools = model.init_pools(slots=2, pages=4)
  hidden, _ = programs.prefill_group(frozen, pools, group)
  hidden = hidden.reshape(ROWS, -1)
  return np.asarray(programs.head(frozen, hidden))[: len(tokens)]
