"""Foreign names of Kimi Linear: delta attention, latents, experts."""

from typing import Any

import numpy as np

from sparse_prefix_jax.layers import (
  Branch,
  ExpertsConfig,
  KimiDeltaAttentionConfig,
  LatentAttentionConfig,
  Norm,
  Numerics,
  ParallelConfig,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  joined_in,
  numbered_experts,
  same,
  side_by_side,
)
from sparse_prefix_jax.models.families.fields import Fields

_DELTA, _FULL = _KINDS = "linear_attention", "full_attention"
_FEED_FORWARDS = "dense", "sparse"
_MIXTURE = "block_sparse_moe."
# The same under the names of the first files, and of transformers.
_ALSO = {
  "model_max_length": "max_position_embeddings",
  "moe_renormalize": "norm_topk_prob",
  "num_expert_group": "n_group",
  "num_experts": "num_local_experts",
  "num_experts_per_token": "num_experts_per_tok",
  "num_shared_experts": "n_shared_experts",
}
_MIXTURE_KEYS = """
moe_intermediate_size moe_layer_freq moe_router_activation_func
routed_scaling_factor topk_group topk_method use_grouped_topk
"""


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then a feed-forward layer, per layer."""
  plain.check_decoder(fields)
  fields.only("hidden_act", "silu")
  fields.only("attention_bias", False)  # of what no file of this form has
  fields.only("mla_use_nope", True)
  eps = fields.number("rms_norm_eps", 1e-5, **plain.EPS)
  norm = Norm(centred=False, eps=eps)
  kinds = _kinds(fields)
  feed_forwards = _feed_forwards(fields, len(kinds))
  mixers: dict[str, Sublayer] = {
    _DELTA: _delta_attention(fields, eps),
    _FULL: _latent_attention(fields),
  }
  subs: dict[str, Sublayer] = {}
  hidden = fields.count("intermediate_size")
  if "dense" in feed_forwards:
    subs["dense"] = SwiGLUConfig(hidden=hidden)
  if "sparse" in feed_forwards:
    subs["sparse"] = _mixture(fields)
  for key in (*_MIXTURE_KEYS.split(), *_ALSO, *_ALSO.values()):
    fields.get(key)  # of layers that the model does not have
  branches = []
  for kind, feed_forward in zip(kinds, feed_forwards, strict=True):
    branches += [
      Branch(mixers[kind], pre=norm),
      Branch(subs[feed_forward], pre=norm),
    ]
  length = fields.count(
    *_either(fields, "model_max_length", 1048576), most=2**30
  )
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=length),
  )


def _either(fields: Fields, key: str, default: Any) -> tuple[str, Any]:
  """A key, or the other that it goes by, and what holds where neither is.

  Raises:
    ValueError: If both are there and differ.
  """
  other = _ALSO[key]
  value, also = fields.get(key), fields.get(other)
  if None not in (value, also) and value != also:
    raise fields.error(key, f"{other} says something else")
  # Where both are null or absent, null is read: for a flag it is an answer.
  first = value is not None or (also is None and key in fields.values)
  return (key if first else other), default


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers: a list, or numbers of layers, from 1."""
  kinds = plain.layer_kinds(fields, ("layer_types",))
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  inside = fields.within("linear_attn_config")
  listed = None if inside is None else _listed(inside, layers)
  if kinds is None:
    if listed is not None:
      return listed
    return [_KINDS[bool(i and i % 4 == 0)] for i in range(layers)]
  plain.check_kinds(fields, "layer_types", kinds, _KINDS)
  if listed not in (None, kinds):
    raise fields.error("layer_types", "linear_attn_config says something else")
  return kinds


def _listed(inside: Fields, layers: int) -> list[str] | None:
  """The kinds of layers whose numbers are listed, kind by kind.

  Raises:
    ValueError: If a layer is in no list, or in both.
  """
  delta, full = inside.ids("kda_layers"), inside.ids("full_attn_layers")
  if not delta and not full:
    return None
  if sorted(delta + full) != list(range(1, layers + 1)):
    raise inside.error(
      "full_attn_layers",
      f"with kda_layers it must hold each of 1 to {layers} once",
    )
  return [_KINDS[i in full] for i in range(1, layers + 1)]


def _feed_forwards(fields: Fields, layers: int) -> list[str]:
  """Reads which layers have experts: a list, or how many at first do not."""
  first = fields.get("first_k_dense_replace")
  first = 1 if first is None else first
  if isinstance(first, bool) or first not in range(layers + 1):
    raise fields.error(
      "first_k_dense_replace", f"it must be an int from 0 to {layers}"
    )
  kinds = fields.texts("mlp_layer_types")
  if kinds is None:
    return ["dense"] * first + ["sparse"] * (layers - first)
  plain.check_kinds(fields, "mlp_layer_types", kinds, _FEED_FORWARDS)
  if len(kinds) != layers:
    raise fields.error("mlp_layer_types", f"there are {layers} layers")
  return kinds


def _delta_attention(fields: Fields, eps: float) -> KimiDeltaAttentionConfig:
  """Reads the recurrent layers, from an object of their own where it is."""
  inside = fields.within("linear_attn_config")

  def count(key: str, flat: str, default: int) -> int:
    size = fields.count(flat, default)
    return size if inside is None else inside.count(key, size)

  sub = KimiDeltaAttentionConfig(
    heads=count("num_heads", "linear_num_heads", 32),
    head_width=count("head_dim", "linear_head_dim", 128),
    window=count("short_conv_kernel_size", "linear_conv_kernel_dim", 4),
    eps=eps,
  )
  if inside is not None:
    inside.refuse_unread({"kda_layers", "full_attn_layers"})
  return sub


def _latent_attention(fields: Fields) -> LatentAttentionConfig:
  """Reads the layers of attention, which tell no positions apart."""
  heads = fields.count("num_attention_heads")
  fields.only("num_key_value_heads", heads)
  fields.only("q_lora_rank")
  return LatentAttentionConfig(
    heads=heads,
    latent_width=fields.count("kv_lora_rank", 512),
    key_width=fields.count("qk_nope_head_dim", 128),
    shared_width=fields.count("qk_rope_head_dim", 64),
    value_width=fields.count("v_head_dim", 128),
  )


def _mixture(fields: Fields) -> ParallelConfig:
  """Reads experts, and what computes every token beside them."""
  fields.only("moe_layer_freq", 1)
  fields.only("moe_router_activation_func", "sigmoid")
  fields.only("topk_method", "noaux_tc")
  groups = fields.count(*_either(fields, "num_expert_group", 1))
  # Where it is false there are no groups to choose from.
  fields.only("use_grouped_topk", True, *([False] if groups == 1 else []))
  hidden = fields.count("moe_intermediate_size")
  shared = fields.count(*_either(fields, "num_shared_experts", 1))
  experts = ExpertsConfig(
    experts=fields.count(*_either(fields, "num_experts", 256)),
    chosen=fields.count(*_either(fields, "num_experts_per_token", 8)),
    hidden=hidden,
    normalized=fields.flag(*_either(fields, "moe_renormalize", True)),
    score="sigmoid",
    factor=fields.number("routed_scaling_factor", 2.446, **plain.FACTORS),
    groups=groups,
    chosen_groups=fields.count("topk_group", 1),
  )
  return ParallelConfig((experts, SwiGLUConfig(hidden=shared * hidden)))


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("input_layernorm.weight")}
  if isinstance(sub, KimiDeltaAttentionConfig):
    return before | _delta_sources(sub)
  if isinstance(sub, LatentAttentionConfig):
    return before | _latent_sources(sub)
  behind = {"pre": same("post_attention_layernorm.weight")}
  if isinstance(sub, SwiGLUConfig):
    # transformers writes them under the name of experts.
    sources = plain.feed_forward_sources(sub, "mlp.")
    others = plain.feed_forward_sources(sub, _MIXTURE)
    return behind | {
      path: source._replace(otherwise=others[path])
      for path, source in sources.items()
    }
  if not isinstance(sub, ParallelConfig):
    raise ValueError(f"sub is {sub!r}; it must be of a Kimi Linear model.")
  experts, shared = sub.subs
  if not isinstance(experts, ExpertsConfig) or not isinstance(
    shared, SwiGLUConfig
  ):
    raise ValueError(f"subs is {sub.subs!r}; it must be experts and SwiGLU.")
  beside = plain.feed_forward_sources(shared, f"{_MIXTURE}shared_experts.")
  return (
    behind
    | plain.inside_pair(_expert_sources(experts), 0)
    | plain.inside_pair(beside, 1)
  )


def _delta_sources(sub: KimiDeltaAttentionConfig) -> dict[str, Source]:
  """Where delta attention comes from: each projection its own tensor."""
  prefix = "self_attn."
  qkv = [f"{prefix}{letter}" for letter in "qkv"]
  narrow = [f"{prefix}{name}_proj.weight" for name in ("f_a", "g_a", "b")]

  join, widths = joined_in((1, 1, 1)), (sub.head_width, sub.head_width)

  def joined_taps(*parts: np.ndarray) -> np.ndarray:
    taps = join(*parts)
    return np.squeeze(taps, 1).T if taps.shape[1] == 1 else taps

  taps = tuple(f"{name}_conv1d.weight" for name in qkv)
  return {
    "sub.in_qkv": side_by_side(
      *(f"{name}_proj.weight" for name in qkv), shares=(1, 1, 1)
    ),
    "sub.in_narrow": side_by_side(*narrow, shares=(*widths, sub.heads)),
    "sub.in_decay": same(f"{prefix}f_b_proj.weight", rank=2),
    "sub.in_gate": same(f"{prefix}g_b_proj.weight", rank=2),
    "sub.conv": Source(taps, (3,) * 3, joined_taps, "F"),
    "sub.log_rate": Source((f"{prefix}A_log",), (4,), lambda x: x.reshape(-1)),
    "sub.decay_bias": same(f"{prefix}dt_bias"),
    "sub.norm": same(f"{prefix}o_norm.weight"),
    "sub.out": same(f"{prefix}o_proj.weight", rank=2),
  }


def _latent_sources(sub: LatentAttentionConfig) -> dict[str, Source]:
  """Where latent attention comes from: keys and values of a head together."""
  prefix = "self_attn."
  both = sub.key_width + sub.value_width

  def part(rows: slice) -> Source:
    def convert(x: np.ndarray) -> np.ndarray:
      if x.shape[0] != sub.heads * both:
        return x  # of a shape that no parameter has
      return x.reshape(sub.heads, both, x.shape[1])[:, rows]

    return Source((f"{prefix}kv_b_proj.weight",), (2,), convert)

  return {
    "sub.in_query": same(f"{prefix}q_proj.weight", rank=2),
    "sub.in_latent": same(f"{prefix}kv_a_proj_with_mqa.weight", rank=2),
    "sub.latent_norm": same(f"{prefix}kv_a_layernorm.weight"),
    "sub.key_up": part(slice(sub.key_width)),
    "sub.value_up": part(slice(sub.key_width, None)),
    "sub.out": same(f"{prefix}o_proj.weight", rank=2),
  }


def _expert_sources(sub: ExpertsConfig) -> dict[str, Source]:
  """Where experts come from: each its own tensors."""
  names = f"{_MIXTURE}experts.", sub.experts, "w1", "w3", "w2"
  gate_up, down = numbered_experts(*names)
  return {
    "sub.router": same(f"{_MIXTURE}gate.weight", rank=2),
    "sub.correction": same(f"{_MIXTURE}gate.e_score_correction_bias"),
    "sub.gate_up": gate_up,
    "sub.down": down,
  }


KIMI_LINEAR = Family(
  model_types=("kimi_linear",),
  read=_read,
  sources=_sources,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Nothing is rotated, and layers that predict several tokens are left out.
  harmless_keys=frozenset(
    {"head_dim", "num_nextn_predict_layers", "qk_head_dim"}
    | {"rope_parameters", "rope_scaling", "rope_theta"}
  ),
  harmless_tensors=(),
)
"""Kimi Delta Attention, latent attention, SwiGLU and experts."""
