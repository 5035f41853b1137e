"""Another other side of the comparisons: llama.cpp, by its Python binding.

Needs `llama-cpp-python`, which is built from source, and `gguf`.
"""

import ctypes
import importlib
from pathlib import Path
from typing import Any

import numpy as np

# By name: the types of an extra that is not installed are nobody's error.
llama: Any = importlib.import_module("llama_cpp")

_BATCH = 1024
"""Tokens of a call, as many as our largest rung has."""


@llama.llama_log_callback
def _silence(level: int, text: bytes, data: Any) -> None:
  """What a library that prints its life is given."""
  del level, text, data


class LlamaCpp:
  """The model of a file as llama.cpp runs it, for one batch at a time.

  Args:
    path: A GGUF file.
    threads: Of the products.
    context: Tokens of the longest sequence.
    batch: Sequences at once.

  Raises:
    ValueError: It does not take the file.
  """

  def __init__(
    self, path: str | Path, threads: int, context: int, batch: int = 1
  ) -> None:
    llama.llama_log_set(_silence, ctypes.c_void_p(0))
    llama.llama_backend_init()
    self._model = llama.llama_model_load_from_file(
      str(path).encode(), llama.llama_model_default_params()
    )
    if not self._model:
      raise ValueError(f"llama.cpp does not take {path}")
    sizes = llama.llama_context_default_params()
    # Sequences begin with one prompt, whose keys they share.
    sizes.n_ctx, sizes.kv_unified = context * batch, True
    sizes.n_batch = sizes.n_ubatch = _BATCH
    sizes.n_seq_max = batch
    sizes.n_threads = sizes.n_threads_batch = threads
    self._context = llama.llama_init_from_model(self._model, sizes)
    vocabulary = llama.llama_model_get_vocab(self._model)
    self._vocabulary = llama.llama_vocab_n_tokens(vocabulary)
    self._memory = llama.llama_get_memory(self._context)
    self._batch = llama.llama_batch_init(_BATCH, 0, batch)
    self._positions: list[int] = []

  def prefill(self, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [1 vocab] of the last token of a prompt; forgets all others.

    Args:
      prompts: Its ids. [1 t]
    """
    llama.llama_memory_clear(self._memory, True)
    (ids,) = prompts
    for start in range(0, ids.size, _BATCH):
      part = ids[start : start + _BATCH]
      last = start + part.size == ids.size
      rows = [
        (int(token), start + at, 0, last and at == part.size - 1)
        for at, token in enumerate(part)
      ]
      self._decode(rows)
    self._positions = [ids.size]
    return self._logits(len(rows) - 1)[None], self

  def decode(self, tokens: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of one more token each.

    Args:
      tokens: Ids. [b]
      past: What the call before returned.
    """
    rows = [
      (int(token), position, row, True)
      for row, (token, position) in enumerate(zip(tokens, self._positions))
    ]
    self._decode(rows)
    self._positions = [position + 1 for position in self._positions]
    return np.stack([self._logits(row) for row in range(len(rows))]), past

  def widen(self, past: Any, batch: int) -> None:
    """Goes on with `batch` sequences that all have the first one's past.

    Args:
      past: What the call before returned.
      batch: Sequences to go on with.
    """
    del past
    for row in range(1, batch):
      llama.llama_memory_seq_cp(self._memory, 0, row, -1, -1)
    self._positions = self._positions[:1] * batch

  def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
    """Runs rows of id, position, sequence, and whether logits are wanted."""
    batch = self._batch
    batch.n_tokens = len(rows)
    for at, (token, position, sequence, wanted) in enumerate(rows):
      batch.token[at], batch.pos[at] = token, position
      batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
      batch.logits[at] = wanted
    code = llama.llama_decode(self._context, batch)
    if code:
      raise RuntimeError(f"llama.cpp failed with code {code}")

  def _logits(self, row: int) -> np.ndarray:
    found = llama.llama_get_logits_ith(self._context, row)
    return np.ctypeslib.as_array(found, (self._vocabulary,)).copy()
