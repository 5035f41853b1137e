"""Foreign names of the dense Qwen3.5 text models, Qwen3.6 among them."""

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import qwen
from sparse_prefix_jax.models.families.family import Family
from sparse_prefix_jax.models.families.fields import Fields


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration; every layer has SwiGLU of one width.

  Experts go by many names; all of them say that this is another family.
  """
  for key in fields.values:
    if ("expert" in key or "moe" in key) and fields.get(key):
      raise fields.error(
        key, "a dense model has no experts, so it must be absent"
      )
  return qwen.read_hybrid(fields, hidden=fields.count("intermediate_size"))


QWEN3_5 = Family(
  model_types=("qwen3_5_text", "qwen3_5"),
  read=_read,
  sources=qwen.branch_sources,
  embedding=qwen.EMBEDDING,
  head=qwen.HEAD,
  # Layers that predict several tokens are not part of these logits.
  harmless_keys=frozenset(
    {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
  ),
  harmless_tensors=("mtp.", "visual."),
)
"""Gated DeltaNet and gated attention, SwiGLU, partial rotary embedding."""
