"""Foreign names of the dense Qwen3.5 text models, Qwen3.6 among them."""

from collections.abc import Iterator
from typing import Any

from sparse_prefix_jax.layers import (
  AttentionConfig,
  GatedDeltaNetConfig,
  Numerics,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
  side_by_side,
  taps_first,
  transposed,
)
from sparse_prefix_jax.models.families.fields import Fields, shown
from sparse_prefix_jax.models.families.rope import read_rope
from sparse_prefix_jax.models.presets import hybrid

_LAYER_TYPES = {
  "linear_attention": GatedDeltaNetConfig.kind,
  "full_attention": AttentionConfig.kind,
}
_MOST_LAYERS = 1024
_COUNTS = {
  "width": "hidden_size",
  "hidden": "intermediate_size",
  "key_heads": "linear_num_key_heads",
  "value_heads": "linear_num_value_heads",
  "key_width": "linear_key_head_dim",
  "value_width": "linear_value_head_dim",
  "window": "linear_conv_kernel_dim",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
}
_BRANCHES: dict[str, dict[str, Source]] = {
  SwiGLUConfig.kind: {
    "pre": same("post_attention_layernorm.weight"),
    "sub.gate": transposed("mlp.gate_proj.weight"),
    "sub.up": transposed("mlp.up_proj.weight"),
    "sub.down": transposed("mlp.down_proj.weight"),
  },
  AttentionConfig.kind: {
    "pre": same("input_layernorm.weight"),
    # Query and gate of a head lie side by side, as they are used.
    "sub.in_query_gate": transposed("self_attn.q_proj.weight"),
    "sub.in_key": transposed("self_attn.k_proj.weight"),
    "sub.in_value": transposed("self_attn.v_proj.weight"),
    "sub.out": transposed("self_attn.o_proj.weight"),
    "sub.query_norm": same("self_attn.q_norm.weight"),
    "sub.key_norm": same("self_attn.k_norm.weight"),
  },
  GatedDeltaNetConfig.kind: {
    "pre": same("input_layernorm.weight"),
    "sub.in_qkv": transposed("linear_attn.in_proj_qkv.weight"),
    "sub.in_gate": transposed("linear_attn.in_proj_z.weight"),
    # Two narrow projections become one product: first decay, then beta.
    "sub.in_decay_beta": side_by_side(
      "linear_attn.in_proj_a.weight", "linear_attn.in_proj_b.weight"
    ),
    "sub.conv": taps_first("linear_attn.conv1d.weight"),
    "sub.log_rate": same("linear_attn.A_log"),
    "sub.decay_bias": same("linear_attn.dt_bias"),
    "sub.norm": same("linear_attn.norm.weight"),
    "sub.out": transposed("linear_attn.out_proj.weight"),
  },
}
_BRANCHES_PER_LAYER = 2


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration that the text configuration decides."""
  _check_variant(fields)
  head_width = fields.count("head_dim", 256)
  rope = read_rope(fields, head_width, 0.25)
  counts: dict[str, Any] = {
    name: fields.count(key) for name, key in _COUNTS.items()
  }
  return hybrid(
    **counts,
    vocab_size=fields.count("vocab_size", most=2**24),
    eps=fields.number("rms_norm_eps", least=1e-30, most=1e3),
    layer_types=_layer_types(fields),
    head_width=head_width,
    rotary_width=rope.width,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _check_variant(fields: Fields) -> None:
  """Refuses variants that have the tensors of a plain model, or more.

  Loading them would succeed and only the logits be wrong. Experts go by many
  names; all of them say so.
  """
  fields.only("hidden_act", "silu")
  fields.only("attention_bias", False)
  fields.only("attn_output_gate", True)
  fields.only("output_gate_type", "swish", "silu")
  fields.only("mamba_ssm_dtype", "float32")
  fields.only("is_encoder_decoder", False)
  fields.only("is_decoder", False, True)
  fields.only("add_cross_attention", False)
  fields.only("tie_encoder_decoder", False)
  for key in fields.values:
    if ("expert" in key or "moe" in key) and fields.get(key):
      raise fields.error(
        key, "mixtures of experts are not implemented, so it must be absent"
      )


def _layer_types(fields: Fields) -> tuple[str, ...]:
  """Reads the kinds of the layers: a list, or attention at every n-th.

  Raises:
    ValueError: If a kind is unknown, or if the list is not as long as
      `num_hidden_layers` says: a shorter one would drop layers silently.
  """
  interval = fields.count("full_attention_interval", 4)
  kinds = fields.get("layer_types")
  if kinds is None:
    layers = fields.count("num_hidden_layers", most=_MOST_LAYERS)
    return tuple(
      _LAYER_TYPES[
        "linear_attention" if (i + 1) % interval else "full_attention"
      ]
      for i in range(layers)
    )
  if not isinstance(kinds, list) or not kinds:
    raise fields.error("layer_types", "it must be a list of layers")
  for kind in kinds:
    if not isinstance(kind, str) or kind not in _LAYER_TYPES:
      raise ValueError(
        f"layer_types in {fields.where} holds {shown(kind)}; it may hold "
        f"{' and '.join(_LAYER_TYPES)}."
      )
  layers = fields.count("num_hidden_layers", len(kinds), most=_MOST_LAYERS)
  if layers != len(kinds):
    raise ValueError(
      f"layer_types in {fields.where} names {len(kinds)} layers; it must name "
      f"num_hidden_layers = {layers}."
    )
  return tuple(_LAYER_TYPES[kind] for kind in kinds)


def _parameters(config: ModelConfig) -> Iterator[tuple[str, Source]]:
  """Pairs every parameter of the model with its source."""
  yield "embedding", same(QWEN3_5.embedding, rank=2)
  yield "norm", same("norm.weight")
  if not config.tie_embeddings:
    yield "unembedding", same(QWEN3_5.head, rank=2)
  for index, branch in enumerate(config.branches):
    inside = f"layers.{index // _BRANCHES_PER_LAYER}."
    for path, source in _BRANCHES[branch.sub.kind].items():
      yield f"branches.{index}.{path}", source.inside(inside)


QWEN3_5 = Family(
  model_types=("qwen3_5_text", "qwen3_5"),
  read=_read,
  parameters=_parameters,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Layers that predict several tokens are not part of these logits.
  harmless_keys=frozenset(
    {"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
  ),
  harmless_tensors=("mtp.", "visual."),
)
"""Gated DeltaNet and gated attention, SwiGLU, partial rotary embedding."""
