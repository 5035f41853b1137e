"""Foreign names of the mixtures of experts of Qwen3.5 and Qwen3.6."""

from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import qwen
from sparse_prefix_jax.models.families.family import Family
from sparse_prefix_jax.models.families.fields import Fields


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration; every layer has experts and a shared one."""
  fields.only("norm_topk_prob", True)
  fields.only("decoder_sparse_step", 1)
  layers = len(qwen.layer_types(fields))
  mixture = qwen.read_mixture(fields, normalized=True)
  return qwen.read_hybrid(fields, feed_forwards=(mixture,) * layers)


QWEN3_5_MOE = Family(
  model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
  read=_read,
  sources=qwen.branch_sources,
  embedding=qwen.EMBEDDING,
  head=qwen.HEAD,
  # Layers that predict several tokens are not part of these logits, and no
  # layer has the width of a dense model.
  harmless_keys=frozenset(
    {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
    | {"intermediate_size"}
  ),
  harmless_tensors=("mtp.", "visual."),
)
"""Gated DeltaNet and gated attention, experts and a gated shared expert."""
