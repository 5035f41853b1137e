"""Foreign names of MiniMax: lightning attention, experts, normed residuals."""

import numpy as np

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  LightningConfig,
  Norm,
  Numerics,
  Sublayer,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  in_a_row,
  numbered_experts,
  same,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_whole_rope

_KINDS = ("linear_attention", "full_attention")
_PARTS = ("in_query", "in_key", "in_value")


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then experts, per layer.

  What is added to is normalised too, and both have factors.
  """
  plain.check_decoder(fields)
  fields.only("hidden_act", "silu")
  fields.only("sliding_window")
  norm = Norm(
    centred=False, eps=fields.number("rms_norm_eps", 1e-5, **plain.EPS)
  )
  width = plain.head_width(fields)
  rope = read_whole_rope(fields, width, theta=1e6)
  lightning = LightningConfig(
    heads=fields.count("num_attention_heads"), head_width=width
  )
  attention = _attention(fields, rope)
  layers = {
    "linear_attention": _branch(fields, lightning, norm, "linear_attn"),
    "full_attention": _branch(fields, attention, norm, "full_attn"),
  }
  mixture = _branch(fields, _experts(fields), norm, "mlp")
  branches = []
  for kind in _kinds(fields):
    branches += [layers[kind], mixture]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _branch(fields: Fields, sub: Sublayer, norm: Norm, factors: str) -> Branch:
  """A branch whose residual is normed, with the factors of its kind."""
  return Branch(
    sub,
    pre=norm,
    keep=fields.number(f"{factors}_alpha_factor", 1.0, **plain.FACTORS),
    scale=fields.number(f"{factors}_beta_factor", 1.0, **plain.FACTORS),
    residual="normed",
  )


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers; without a list every other one attends."""
  kinds = plain.layer_kinds(fields, ("layer_types",))
  if kinds is not None:
    plain.check_kinds(fields, "layer_types", kinds, _KINDS)
    return kinds
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  return [_KINDS[(layer + 1) % 2] for layer in range(layers)]


def _attention(fields: Fields, rope: Rope) -> AttentionConfig:
  """Reads the layers of attention."""
  heads = fields.count("num_attention_heads")
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=rope.width,
    rotary_width=rope.width,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling,
    gate=False,
    head_norm=False,
  )


def _experts(fields: Fields) -> ExpertsConfig:
  """Reads the experts, which every layer has."""
  return ExpertsConfig(
    experts=fields.count("num_local_experts", 8),
    chosen=fields.count("num_experts_per_tok", 2),
    hidden=fields.count("intermediate_size"),
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("input_layernorm.weight")}
  if isinstance(sub, LightningConfig):
    return before | _lightning(sub)
  if isinstance(sub, AttentionConfig):
    return before | plain.attention_sources(sub, "self_attn.")
  if not isinstance(sub, ExpertsConfig):
    raise ValueError(f"sub is {sub!r}; it must be of a MiniMax model.")
  return {"pre": same("post_attention_layernorm.weight")} | _mixture(sub)


def _lightning(sub: LightningConfig) -> dict[str, Source]:
  """Where lightning attention comes from: one product, head by head."""
  prefix = "self_attn."

  def part(number: int) -> Source:
    def convert(x: np.ndarray) -> np.ndarray:
      if x.shape[0] != 3 * sub.inner_width:
        return x  # of a shape that no parameter has
      by_head = x.reshape(sub.heads, 3, sub.head_width, x.shape[1])
      return by_head[:, number].reshape(-1, x.shape[1])

    return Source((f"{prefix}qkv_proj.weight",), (2,), convert)

  return {f"sub.{name}": part(i) for i, name in enumerate(_PARTS)} | {
    "sub.in_gate": same(f"{prefix}output_gate.weight", rank=2),
    "sub.rate": in_a_row(f"{prefix}slope_rate", rank=3),
    "sub.norm": same(f"{prefix}norm.weight"),
    "sub.out": same(f"{prefix}out_proj.weight", rank=2),
  }


def _mixture(sub: ExpertsConfig) -> dict[str, Source]:
  """Where experts come from: each its own tensors."""
  prefix = "block_sparse_moe."
  names = f"{prefix}experts.", sub.experts, "w1", "w3", "w2"
  gate_up, down = numbered_experts(*names)
  return {
    "sub.router": same(f"{prefix}gate.weight", rank=2),
    "sub.gate_up": gate_up,
    "sub.down": down,
  }


MINIMAX = Family(
  model_types=("minimax",),
  read=_read,
  sources=_sources,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Blocks of another implementation, and what only training adds.
  harmless_keys=frozenset({"block_size", "router_jitter_noise"}),
  harmless_tensors=(),
  # Made of slope_rate, for blocks of that size.
  harmless_ends=(
    *(".self_attn.query_decay", ".self_attn.key_decay"),
    ".self_attn.diagonal_decay",
  ),
)
"""Lightning and plain attention, experts behind each, normed residuals."""
