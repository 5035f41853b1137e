"""Foreign names of Qwen3-Next: projections interleaved by key head."""

import numpy as np

from sparse_prefix_jax.layers import (
  Branch,
  GatedDeltaNetConfig,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import qwen
from sparse_prefix_jax.models.families.family import Family, Source
from sparse_prefix_jax.models.families.fields import Fields

_QKVZ = "linear_attn.in_proj_qkvz.weight"
_BA = "linear_attn.in_proj_ba.weight"
# What a file says of experts, whether or not a layer has any.
_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_OF_EXPERTS += ("shared_expert_intermediate_size", "norm_topk_prob")


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration; layers have experts, or SwiGLU where it says."""
  layers = len(qwen.layer_types(fields))
  step = fields.count("decoder_sparse_step", 1)
  dense = fields.ids("mlp_only_layers")
  if any(layer >= layers for layer in dense):
    raise fields.error("mlp_only_layers", f"there are {layers} layers, from 0")
  # No experts are 0 of them, or layers that are all dense.
  has_any = fields.get("num_experts") != 0
  sparse = [
    has_any and layer not in dense and (layer + 1) % step == 0
    for layer in range(layers)
  ]
  subs: dict[bool, Sublayer] = {}
  if any(sparse):
    normalized = fields.flag("norm_topk_prob", True)
    subs[True] = qwen.read_mixture(fields, normalized=normalized)
  for key in ("intermediate_size", *_OF_EXPERTS):
    fields.get(key)  # nothing depends on it without such a layer
  if not all(sparse):
    subs[False] = SwiGLUConfig(hidden=fields.count("intermediate_size"))
  return qwen.read_hybrid(fields, feed_forwards=tuple(subs[s] for s in sparse))


def _sources(branch: Branch) -> qwen.Sources:
  """Where the parameters of a branch come from, by its sublayer."""
  sources = qwen.branch_sources(branch)
  if isinstance(branch.sub, GatedDeltaNetConfig):
    return sources | _interleaved(branch.sub)
  return sources


def _interleaved(sub: GatedDeltaNetConfig) -> qwen.Sources:
  """Takes projections apart: of each key head come q, k, values, gates."""
  ratio = sub.value_heads // sub.key_heads
  values = ratio * sub.value_width
  wide = (sub.key_width, sub.key_width, values, values)

  def in_qkv(x: np.ndarray) -> np.ndarray:
    return _joined(_parts(x, sub.key_heads, wide)[:3])

  def in_gate(x: np.ndarray) -> np.ndarray:
    return _joined(_parts(x, sub.key_heads, wide)[3:])

  def in_decay_beta(x: np.ndarray) -> np.ndarray:
    beta_decay = _parts(x, sub.key_heads, (ratio, ratio))
    return _joined(beta_decay[::-1])

  return {
    "sub.in_qkv": Source((_QKVZ,), (2,), in_qkv),
    "sub.in_gate": Source((_QKVZ,), (2,), in_gate),
    "sub.in_decay_beta": Source((_BA,), (2,), in_decay_beta),
  }


def _parts(
  x: np.ndarray, heads: int, sizes: tuple[int, ...]
) -> list[np.ndarray]:
  """Cuts the rows of every head into parts of these sizes.

  Rows of another number are one part, of a shape that no parameter has.
  """
  if x.shape[0] != heads * sum(sizes):
    return [x]
  by_head = x.reshape(heads, sum(sizes), x.shape[1])
  ends = np.cumsum(sizes)[:-1]
  return np.split(by_head, ends, axis=1)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
  """Puts parts below each other, head by head, as one product takes them."""
  if not parts:
    return np.zeros((0, 0), bool)
  return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


QWEN3_NEXT = Family(
  model_types=("qwen3_next",),
  read=_read,
  sources=_sources,
  embedding=qwen.EMBEDDING,
  head=qwen.HEAD,
  # Layers that predict several tokens are not part of these logits.
  harmless_keys=frozenset(
    {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
  ),
  harmless_tensors=("mtp.",),
)
"""The mixers of Qwen3.5, experts or SwiGLU, and heads one after another."""
