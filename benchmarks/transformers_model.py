"""The other side of the comparisons: PyTorch and transformers.

A random checkpoint, written by transformers, is what both sides run. Needs the
extra `parity`.
"""

import importlib
import inspect
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


def write_checkpoint(directory: str, config: Any = None) -> None:
  """Writes a random checkpoint, always the same.

  Args:
    directory: Gets config.json and the weights as safetensors.
    config: A configuration of transformers; of the layer group if None.
  """
  torch.manual_seed(0)
  if config is None:
    config = transformers.Qwen3_5TextConfig(**LAYER_GROUP)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.save_pretrained(directory)


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
    model = transformers.AutoModelForCausalLM.from_pretrained(
      directory, dtype=getattr(torch, dtype)
    )
    self.model = model.eval().to(device)
    takes = inspect.signature(model.forward).parameters
    names = ("cache", "past_key_values", "cache_params")
    # Its name changes from version to version.
    self.past_name = next(name for name in names if name in takes)

  def prefill(self, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of the last tokens, and the cache to go on with.

    Args:
      prompts: Ids of prompts of one length. [b t]
    """
    # RecurrentGemma returns no cache, and fills the one that it is given.
    fills = self.model.config.model_type == "recurrent_gemma"
    fresh = transformers.DynamicCache(config=self.model.config)
    return self._run(prompts, fresh if fills else None)

  def decode(self, tokens: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    """Logits [b vocab] of one more token each, and the cache.

    Args:
      tokens: Ids. [b]
      past: What the call before returned.
    """
    return self._run(tokens[:, None], past)

  def widen(self, past: Any, batch: int) -> None:
    """Repeats a cache of one prompt for `batch` sequences, in place.

    Args:
      past: What a call returned.
      batch: Sequences to go on with.
    """
    first = torch.zeros(batch, dtype=torch.long, device=self.device)
    past.reorder_cache(first)
    for module in self.model.modules():
      # RecurrentGemma has its states here, and not in its cache.
      for name in ("conv1d_state", "recurrent_states"):
        state = getattr(module, name, None)
        if state is not None:
          setattr(module, name, state.repeat_interleave(batch, 0))

  def _run(self, ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
    with torch.inference_mode():
      out = self.model(
        torch.tensor(ids, device=self.device),
        use_cache=True,
        logits_to_keep=1,
        **{self.past_name: past},
      )
    logits = out.logits[:, -1].float().cpu().numpy()
    return logits, getattr(out, self.past_name, past)
