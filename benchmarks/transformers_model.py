"""The other side of the comparisons: PyTorch and transformers.

A random checkpoint of the 0.8B layer group, written by transformers, is what
both sides run. Needs the extra `parity`.
"""

import importlib
from typing import Any

import numpy as np

# By name: the types of an extra that is not installed are nobody's error.
torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

LAYER_GROUP = {
  "vocab_size": 512,
  "hidden_size": 1024,
  "intermediate_size": 3584,
  "num_hidden_layers": 4,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
  "head_dim": 256,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 16,
  "tie_word_embeddings": True,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": [11, 11, 10],
  },
}
"""The layer group as transformers' configuration names it."""


def write_checkpoint(directory: str) -> None:
  """Writes a random checkpoint of the layer group, always the same.

  Args:
    directory: Gets config.json and the weights as safetensors.
  """
  torch.manual_seed(0)
  config = transformers.Qwen3_5TextConfig(**LAYER_GROUP)
  transformers.Qwen3_5ForCausalLM(config).save_pretrained(directory)


class Transformers:
  """The model of a checkpoint as transformers runs it.

  Args:
    directory: With config.json and weights.
    threads: Of PyTorch, for the whole process.
    dtype: Of weights and activations.
    device: As PyTorch names it.
  """

  def __init__(
    self,
    directory: str,
    threads: int,
    dtype: str = "float32",
    device: str = "cpu",
  ) -> None:
    torch.set_num_threads(threads)
    self.device = device
    model = transformers.Qwen3_5ForCausalLM.from_pretrained(
      directory, dtype=getattr(torch, dtype)
    )
    self.model = model.eval().to(device)

  def prefill(self, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of the last tokens, and the cache to go on with.

    Args:
      prompts: Ids of prompts of one length. [b t]
    """
    return self._run(prompts, None)

  def decode(self, tokens: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of one more token each, and the cache.

    Args:
      tokens: Ids. [b]
      past: What the call before returned.
    """
    return self._run(tokens[:, None], past)

  @staticmethod
  def widen(past: Any, batch: int) -> None:
    """Repeats a cache of one prompt for `batch` sequences, in place."""
    device = past.layers[0].device if hasattr(past, "layers") else "cpu"
    past.reorder_cache(torch.zeros(batch, dtype=torch.long, device=device))

  def _run(self, ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    with torch.inference_mode():
      out = self.model(
        torch.tensor(ids, device=self.device),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
      )
    logits = out.logits[:, -1].float().cpu().numpy()
    return logits, out.past_key_values
