"""Foreign names of Nemotron-H, dense and mixtures of experts."""

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  Mamba2Config,
  MLPConfig,
  Norm,
  Numerics,
  ParallelConfig,
  Sublayer,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
  stack_of,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.state_space import mamba2_sources

_LETTERS = {
  "M": "linear_attention",
  "E": "moe",
  "*": "full_attention",
  "-": "mlp",
}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
# Read by the parts that compute, under names of older files too.
_HARMLESS = """
chunk_size mamba_chunk_size expand mamba_expand
hybrid_override_pattern mamba_dt_init_floor mamba_dt_limit mamba_dt_max
mamba_ssm_cache_dtype moe_shared_expert_overlap mtp_hybrid_override_pattern
mtp_layers_block_type norm_eps num_logits_to_keep num_nextn_predict_layers
partial_rotary_factor rescale_prenorm_residual residual_in_fp32 rope_parameters
rope_scaling rope_theta time_step_floor time_step_limit time_step_max
time_step_rank use_mamba_kernels
"""


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: one branch per layer, of four kinds."""
  plain.check_decoder(fields)
  for key in ("attention_bias", "mamba_proj_bias"):
    fields.only(key, False)  # computed by no implementation
  fields.only("sliding_window")
  eps = fields.number("layer_norm_epsilon", 1e-5, **plain.EPS)
  fields.only("rms_norm_eps", eps)  # the same under another name
  norm = Norm(centred=False, eps=eps)
  kinds = _kinds(fields)
  makers = {
    "linear_attention": _mamba2,
    "full_attention": _attention,
    "mlp": _mlp,
    "moe": _mixture,
  }
  subs = {kind: make(fields) for kind, make in makers.items() if kind in kinds}
  _pass_over(fields)
  length = fields.count("max_position_embeddings", 4096, most=2**30)
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(Branch(subs[kind], pre=norm) for kind in kinds),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=length),
  )


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers: a list, or a letter for each.

  Raises:
    ValueError: If there is neither, if they differ, or if a kind is unknown.
  """
  pattern = fields.get("hybrid_override_pattern")
  kinds = plain.layer_kinds(fields, ("layers_block_type", "layer_types"))
  spelled = None
  if pattern is not None:
    if not isinstance(pattern, str) or not set(pattern) <= set(_LETTERS):
      raise fields.error(
        "hybrid_override_pattern", f"it must be made of {' '.join(_LETTERS)}"
      )
    spelled = [_LETTERS[letter] for letter in pattern]
  if kinds is not None:
    kinds = [_OLDER.get(kind, kind) for kind in kinds]
    known = (*_LETTERS.values(), *_OLDER)
    plain.check_kinds(fields, "layers_block_type", kinds, known)
  kinds = kinds or spelled
  if not kinds or len(kinds) > plain.MOST_LAYERS:
    raise ValueError(
      f"{fields.where} names {len(kinds or [])} layers in layers_block_type "
      f"and hybrid_override_pattern; it must name 1 to {plain.MOST_LAYERS}."
    )
  if spelled is not None and spelled != kinds:
    raise fields.error(
      "hybrid_override_pattern", "layers_block_type says something else"
    )
  layers = fields.count("num_hidden_layers", len(kinds))
  if layers != len(kinds):
    raise fields.error("num_hidden_layers", f"there are {len(kinds)} kinds")
  return kinds


def _pass_over(fields: Fields) -> None:
  """Reads what belongs to kinds of layers that the model does not have."""
  for key in (
    *("intermediate_size", "mlp_hidden_act", "mlp_bias", "head_dim"),
    *("attention_head_dim", "num_query_groups"),
    *("num_attention_heads", "num_key_value_heads", "moe_latent_size"),
    *("n_routed_experts", "n_shared_experts", "moe_intermediate_size"),
    *("moe_shared_expert_intermediate_size", "num_experts_per_tok"),
    *("routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob"),
    *("ssm_state_size", "mamba_num_heads", "mamba_head_dim", "use_bias"),
    *("mamba_hidden_act", "n_groups", "conv_kernel", "time_step_min"),
    *("use_conv_bias", "mamba_n_groups", "mamba_d_conv", "mamba_conv_bias"),
    "mamba_dt_min",
  ):
    fields.get(key)


def _mamba2(fields: Fields) -> Mamba2Config:
  """Reads the recurrent layers; their steps have a least size."""
  fields.only("mamba_hidden_act", "silu")

  def count(key: str, older: str, default: int) -> int:
    return fields.count(older, fields.count(key, default))

  bias = fields.flag("mamba_conv_bias", fields.flag("use_conv_bias", True))
  least = fields.number("time_step_min", 1e-3, least=1e-12, most=1e3)
  return Mamba2Config(
    heads=fields.count("mamba_num_heads"),
    groups=count("n_groups", "mamba_n_groups", 8),
    head_width=fields.count("mamba_head_dim"),
    state_width=fields.count("ssm_state_size"),
    window=count("conv_kernel", "mamba_d_conv", 4),
    bias=fields.flag("use_bias", False),
    conv_bias=bias,
    eps=fields.number("layer_norm_epsilon", 1e-5, **plain.EPS),
    least_step=fields.number("mamba_dt_min", least, least=1e-12, most=1e3),
  )


def _attention(fields: Fields) -> AttentionConfig:
  """Reads the layers of attention, which tell no positions apart."""
  heads = fields.count("num_attention_heads")
  kv_heads = fields.count("num_key_value_heads", heads)
  head_width = fields.count("head_dim", fields.get("attention_head_dim") or 128)
  # The same under names of older files.
  fields.only("num_query_groups", kv_heads)
  fields.only("attention_head_dim", head_width)
  return AttentionConfig(
    heads=heads,
    kv_heads=kv_heads,
    head_width=head_width,
    rotary_width=None,
    gate=False,
    head_norm=False,
  )


def _mlp(fields: Fields, key: str = "intermediate_size") -> MLPConfig:
  """Reads feed-forward layers without a gate."""
  fields.only("mlp_hidden_act", "relu2")
  bias = fields.flag("mlp_bias", False)
  return MLPConfig(hidden=fields.count(key), bias=bias)


def _mixture(fields: Fields) -> ParallelConfig:
  """Reads experts, and the one beside them that computes every token."""
  fields.only("n_shared_experts", 1)
  latent = fields.get("moe_latent_size")
  if latent is not None:
    latent = fields.count("moe_latent_size")
    fields.only("mlp_bias", False)  # it would be one of theirs too
  experts = ExpertsConfig(
    experts=fields.count("n_routed_experts"),
    chosen=fields.count("num_experts_per_tok"),
    hidden=fields.count("moe_intermediate_size"),
    normalized=fields.flag("norm_topk_prob", True),
    score="sigmoid",
    factor=fields.number("routed_scaling_factor", 1.0, **plain.FACTORS),
    groups=fields.count("n_group", 1),
    chosen_groups=fields.count("topk_group", 1),
    gated=False,
    activation="relu_squared",
    latent=latent,
  )
  shared = _mlp(fields, "moe_shared_expert_intermediate_size")
  return ParallelConfig((experts, shared))


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  return _mixer(branch.sub) | {"pre": same("norm.weight")}


def _mixer(sub: Sublayer) -> dict[str, Source]:
  """Where those of its sublayer come from."""
  if isinstance(sub, Mamba2Config):
    return mamba2_sources(sub, "mixer.")
  if isinstance(sub, AttentionConfig):
    return plain.attention_sources(sub, "mixer.")
  if isinstance(sub, MLPConfig):
    return plain.feed_forward_sources(sub, "mixer.")
  if not isinstance(sub, ParallelConfig):
    raise ValueError(f"sub is {sub!r}; it must be of a Nemotron-H model.")
  experts, shared = sub.subs
  if not isinstance(experts, ExpertsConfig) or not isinstance(
    shared, MLPConfig
  ):
    raise ValueError(f"subs is {sub.subs!r}; it must be experts and an MLP.")
  beside = plain.feed_forward_sources(shared, "mixer.shared_experts.")
  return plain.inside_pair(_experts(experts), 0) | plain.inside_pair(beside, 1)


def _experts(sub: ExpertsConfig) -> dict[str, Source]:
  """Where experts come from: one tensor, or each its own."""
  sources = {
    "sub.router": same("mixer.gate.weight", rank=2),
    "sub.correction": same("mixer.gate.e_score_correction_bias"),
  }
  if sub.latent:
    sources |= {
      "sub.enter": same("mixer.fc1_latent_proj.weight", rank=2),
      "sub.leave": same("mixer.fc2_latent_proj.weight", rank=2),
    }
  prefix = "mixer.experts."
  for ours, theirs in (("gate_up", "up_proj"), ("down", "down_proj")):
    each = (
      f"{prefix}{number}.{theirs}.weight" for number in range(sub.experts)
    )
    whole = same(prefix + theirs, rank=3)
    sources[f"sub.{ours}"] = whole._replace(otherwise=stack_of(*each))
  return sources


NEMOTRON_H = Family(
  model_types=("nemotron_h",),
  read=_read,
  sources=_sources,
  norm="backbone.norm_f.weight",
  layers="backbone.layers.",
  branches_per_layer=1,
  embedding="backbone.embeddings.weight",
  head="lm_head.weight",
  harmless_keys=frozenset(_HARMLESS.split()),
  harmless_tensors=("mtp.",),
)
"""Mamba-2, attention without positions, and relu squared, one per layer."""
