"""What the Qwen families share: mixers, experts, and how they are named."""

from typing import Any

import numpy as np

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  GatedDeltaNetConfig,
  Numerics,
  ParallelConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Source,
  numbered_experts,
  same,
  side_by_side,
  taps_first,
)
from sparse_prefix_jax.models.families.fields import Fields, shown
from sparse_prefix_jax.models.families.rope import read_rope
from sparse_prefix_jax.models.qwen_form import hybrid, mixture

_LAYER_TYPES = {
  "linear_attention": GatedDeltaNetConfig.kind,
  "full_attention": AttentionConfig.kind,
}

_GATE_UP = ("gate_proj", "up_proj")
_COUNTS = {
  "width": "hidden_size",
  "key_heads": "linear_num_key_heads",
  "value_heads": "linear_num_value_heads",
  "key_width": "linear_key_head_dim",
  "value_width": "linear_value_head_dim",
  "window": "linear_conv_kernel_dim",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
}
Sources = dict[str, Source]
"""Where the parameters of a branch come from, by their paths in it."""

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
BRANCHES: dict[str, Sources] = {
  SwiGLUConfig.kind: {
    "pre": same("post_attention_layernorm.weight"),
    "sub.gate": same("mlp.gate_proj.weight", rank=2),
    "sub.up": same("mlp.up_proj.weight", rank=2),
    "sub.down": same("mlp.down_proj.weight", rank=2),
  },
  AttentionConfig.kind: {
    "pre": same("input_layernorm.weight"),
    # Query and gate of a head lie side by side, as they are used.
    "sub.in_query_gate": same("self_attn.q_proj.weight", rank=2),
    "sub.in_key": same("self_attn.k_proj.weight", rank=2),
    "sub.in_value": same("self_attn.v_proj.weight", rank=2),
    "sub.out": same("self_attn.o_proj.weight", rank=2),
    "sub.query_norm": same("self_attn.q_norm.weight"),
    "sub.key_norm": same("self_attn.k_norm.weight"),
  },
  GatedDeltaNetConfig.kind: {
    "pre": same("input_layernorm.weight"),
    "sub.in_qkv": same("linear_attn.in_proj_qkv.weight", rank=2),
    "sub.in_gate": same("linear_attn.in_proj_z.weight", rank=2),
    # Two narrow projections become one product: first decay, then beta.
    "sub.in_decay_beta": side_by_side(
      "linear_attn.in_proj_a.weight",
      "linear_attn.in_proj_b.weight",
      shares=(1, 1),
    ),
    "sub.conv": taps_first("linear_attn.conv1d.weight"),
    "sub.log_rate": same("linear_attn.A_log"),
    "sub.decay_bias": same("linear_attn.dt_bias"),
    "sub.norm": same("linear_attn.norm.weight"),
    "sub.out": same("linear_attn.out_proj.weight", rank=2),
  },
}


def read_hybrid(fields: Fields, **feed_forward: Any) -> ModelConfig:
  """Makes the configuration that the text configuration decides.

  Args:
    fields: The text configuration.
    **feed_forward: Of `hybrid`, the feed-forward layers.
  """
  _check_variant(fields)
  head_width = fields.count("head_dim", 256)
  rope = read_rope(fields, head_width, 0.25)
  counts: dict[str, Any] = {
    name: fields.count(key) for name, key in _COUNTS.items()
  }
  return hybrid(
    **counts,
    **feed_forward,
    vocab_size=fields.count("vocab_size", most=2**24),
    eps=fields.number("rms_norm_eps", least=1e-30, most=1e3),
    layer_types=layer_types(fields),
    head_width=head_width,
    rotary_width=rope.width,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def read_mixture(fields: Fields, normalized: bool) -> ParallelConfig:
  """Makes the mixture of experts of one layer, the shared one beside it.

  Args:
    fields: The text configuration.
    normalized: Whether the weights of the chosen are divided by their sum.
  """
  return mixture(
    experts=fields.count("num_experts"),
    chosen=fields.count("num_experts_per_tok"),
    hidden=fields.count("moe_intermediate_size"),
    shared=fields.count("shared_expert_intermediate_size"),
    normalized=normalized,
  )


def _check_variant(fields: Fields) -> None:
  """Refuses variants that have the tensors of a plain model, or more.

  Loading them would succeed and only the logits be wrong.
  """
  fields.only("hidden_act", "silu")
  fields.only("attention_bias", False)
  fields.only("attn_output_gate", True)
  fields.only("output_gate_type", "swish", "silu")
  fields.only("mamba_ssm_dtype", "float32")
  fields.only("use_sliding_window", False)
  fields.only("is_encoder_decoder", False)
  fields.only("is_decoder", False, True)
  fields.only("add_cross_attention", False)
  fields.only("tie_encoder_decoder", False)


def layer_types(fields: Fields) -> tuple[str, ...]:
  """Reads the kinds of the layers: a list, or attention at every n-th.

  Raises:
    ValueError: If a kind is unknown, or if the list is not as long as
      `num_hidden_layers` says: a shorter one would drop layers silently.
  """
  interval = fields.count("full_attention_interval", 4)
  kinds = fields.get("layer_types")
  if kinds is None:
    layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
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
  layers = fields.count("num_hidden_layers", len(kinds), most=plain.MOST_LAYERS)
  if layers != len(kinds):
    raise ValueError(
      f"layer_types in {fields.where} names {len(kinds)} layers; it must name "
      f"num_hidden_layers = {layers}."
    )
  return tuple(_LAYER_TYPES[kind] for kind in kinds)


def branch_sources(branch: Branch) -> Sources:
  """Where the parameters of a branch come from, by its sublayer.

  Args:
    branch: A mixer, SwiGLU, or what `read_mixture` made.
  """
  if isinstance(branch.sub, ParallelConfig):
    return _mixture_sources(branch.sub)
  return BRANCHES[branch.sub.kind]


def _mixture_sources(sub: ParallelConfig) -> Sources:
  """Where a mixture comes from: experts in one tensor, or one by one.

  Args:
    sub: What `read_mixture` made.

  Raises:
    ValueError: If it is no mixture.
  """
  if not isinstance(sub.subs[0], ExpertsConfig):
    raise ValueError(f"subs[0] is {sub.subs[0]!r}; it must be experts.")
  experts = sub.subs[0].experts
  prefix = "mlp.experts."
  pairs, down = numbered_experts(prefix, experts, *_GATE_UP, "down_proj")
  shared = "mlp.shared_expert."
  return {
    "pre": same("post_attention_layernorm.weight"),
    "sub.subs.0.router": same("mlp.gate.weight", rank=2),
    "sub.subs.0.gate_up": same(prefix + "gate_up_proj", rank=3)._replace(
      otherwise=pairs
    ),
    "sub.subs.0.down": same(prefix + "down_proj", rank=3)._replace(
      otherwise=down
    ),
    "sub.subs.1.opening": Source(
      ("mlp.shared_expert_gate.weight",), (2,), _only_row
    ),
    "sub.subs.1.expert.gate": same(shared + "gate_proj.weight", rank=2),
    "sub.subs.1.expert.up": same(shared + "up_proj.weight", rank=2),
    "sub.subs.1.expert.down": same(shared + "down_proj.weight", rank=2),
  }


def _only_row(x: np.ndarray) -> np.ndarray:
  """The one row of a weight; several leave a shape that no parameter has."""
  return x[0] if x.shape[0] == 1 else x
