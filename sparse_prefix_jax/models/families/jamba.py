"""Foreign names of Jamba: Mamba and attention, SwiGLU or experts."""

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  MambaConfig,
  Norm,
  Numerics,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  numbered_experts,
  same,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.state_space import mamba_sources


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then a feed-forward, per layer."""
  plain.check_decoder(fields)
  fields.only("hidden_act", "silu")
  norm = Norm(
    centred=False, eps=fields.number("rms_norm_eps", 1e-6, **plain.EPS)
  )
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  attends = _every(fields, "attn_layer_period", "attn_layer_offset", 8, 4)
  routes = _every(fields, "expert_layer_period", "expert_layer_offset", 2, 1)
  mixers = {True: _attention(fields), False: _mamba(fields)}
  feed_forwards = {True: _experts(fields), False: _swiglu(fields)}
  branches = []
  for layer in range(layers):
    branches += [
      Branch(mixers[layer % attends[0] == attends[1]], pre=norm),
      Branch(feed_forwards[layer % routes[0] == routes[1]], pre=norm),
    ]
  length = fields.count("max_position_embeddings", 262144, most=2**30)
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=length),
  )


def _every(
  fields: Fields, period: str, offset: str, every: int, first: int
) -> tuple[int, int]:
  """Reads which layers are of a kind: one in a period, and where it stands.

  Raises:
    ValueError: If it stands outside of the period.
  """
  every = fields.count(period, every)
  if fields.get(offset) == 0:
    return every, 0
  first = fields.count(offset, first)
  if first >= every:
    raise fields.error(offset, f"it must be below {period} = {every}")
  return every, first


def _mamba(fields: Fields) -> MambaConfig:
  """Reads the recurrent layers; what they are made of is normalised."""
  width, rank = fields.count("hidden_size"), fields.get("mamba_dt_rank")
  return MambaConfig(
    inner_width=fields.count("mamba_expand", 2) * width,
    state_width=fields.count("mamba_d_state", 16),
    rank=-(-width // 16)
    if rank in (None, "auto")
    else fields.count("mamba_dt_rank"),
    window=fields.count("mamba_d_conv", 4),
    bias=fields.flag("mamba_proj_bias", False),
    conv_bias=fields.flag("mamba_conv_bias", True),
    part_norm="weighted",
    eps=fields.number("rms_norm_eps", 1e-6, **plain.EPS),
  )


def _attention(fields: Fields) -> AttentionConfig:
  """Reads the layers of attention, which tell no positions apart."""
  heads = fields.count("num_attention_heads")
  fields.only("sliding_window")
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=plain.head_width(fields),
    rotary_width=None,
    gate=False,
    head_norm=False,
  )


def _swiglu(fields: Fields) -> SwiGLUConfig:
  """Reads feed-forward layers; experts are of the same width."""
  return SwiGLUConfig(hidden=fields.count("intermediate_size"))


def _experts(fields: Fields) -> Sublayer:
  """Reads experts; a single one is a feed-forward layer without a router."""
  experts = fields.count("num_experts", 16)
  chosen = fields.count("num_experts_per_tok", 2)
  if experts == 1:
    return _swiglu(fields)
  return ExpertsConfig(
    experts=experts,
    chosen=chosen,
    hidden=fields.count("intermediate_size"),
    normalized=False,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("input_layernorm.weight")}
  behind = {"pre": same("pre_ff_layernorm.weight")}
  if isinstance(sub, MambaConfig):
    return before | mamba_sources(sub, "mamba.")
  if isinstance(sub, AttentionConfig):
    return before | plain.attention_sources(sub, "self_attn.")
  if isinstance(sub, SwiGLUConfig):
    return behind | plain.feed_forward_sources(sub, "feed_forward.")
  if not isinstance(sub, ExpertsConfig):
    raise ValueError(f"sub is {sub!r}; it must be of a Jamba model.")
  return behind | _expert_sources(sub)


def _expert_sources(sub: ExpertsConfig) -> dict[str, Source]:
  """Where experts come from: one tensor, or each its own."""
  prefix = "feed_forward.experts."
  names = prefix, sub.experts, "gate_proj", "up_proj", "down_proj"
  pairs, down = numbered_experts(*names)
  return {
    "sub.router": same("feed_forward.router.weight", rank=2),
    "sub.gate_up": same(prefix + "gate_up_proj", rank=3)._replace(
      otherwise=pairs
    ),
    "sub.down": same(prefix + "down_proj", rank=3)._replace(otherwise=down),
  }


JAMBA = Family(
  model_types=("jamba",),
  read=_read,
  sources=_sources,
  norm="final_layernorm.weight",
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Which implementation computes, and how many logits are asked for.
  # Text is computed the same with fewer logits, and with either kernel.
  harmless_keys=frozenset(
    {"use_mamba_kernels", "use_mambapy", "use_associative_scan"}
    | {"num_logits_to_keep", "calc_logits_for_entire_prompt"}
    | {"mamba_inner_layernorms", "n_ctx"}
  ),
  harmless_tensors=(),
)
"""Mamba and attention without positions, SwiGLU or experts behind each."""
