"""Foreign names of the Mamba models, and of Falcon-Mamba."""

from sparse_prefix_jax.layers import Branch, MambaConfig, Norm, Numerics
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.state_space import mamba_sources

_FALCON = "falcon_mamba"


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: Mamba layers alone, one branch each."""
  plain.check_decoder(fields)
  fields.only("hidden_act", "silu")
  norm = Norm(
    centred=False, eps=fields.number("layer_norm_epsilon", 1e-5, **plain.EPS)
  )
  width = fields.count("hidden_size")
  inner = fields.count("expand", 2) * width
  rank = fields.get("time_step_rank")
  plain_norm = fields.get("model_type") == _FALCON
  sub = MambaConfig(
    inner_width=fields.count("intermediate_size", inner),
    state_width=fields.count("state_size", 16),
    rank=-(-width // 16)
    if rank in (None, "auto")
    else fields.count("time_step_rank"),
    window=fields.count("conv_kernel", 4),
    bias=fields.flag("use_bias", False),
    conv_bias=fields.flag("use_conv_bias", True),
    part_norm="plain" if plain_norm else "none",
    eps=fields.number("mixer_rms_eps", 1e-6, **plain.EPS)
    if plain_norm
    else 1e-6,
  )
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=width,
    branches=(Branch(sub, pre=norm),) * layers,
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG),
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from: a norm and its mixer."""
  if not isinstance(branch.sub, MambaConfig):
    raise ValueError(f"sub is {branch.sub!r}; it must be Mamba.")
  return mamba_sources(branch.sub, "mixer.") | {"pre": same("norm.weight")}


MAMBA = Family(
  model_types=("mamba", _FALCON),
  read=_read,
  sources=_sources,
  norm="backbone.norm_f.weight",
  layers="backbone.layers.",
  branches_per_layer=1,
  embedding="backbone.embeddings.weight",
  head="lm_head.weight",
  # How steps and weights were initialised, which implementation computes, the
  # type of a residual stream that here has that of the activations, and keys of
  # the first release, which repeat the others.
  harmless_keys=frozenset(
    {"time_step_floor", "time_step_max", "time_step_min", "time_step_scale"}
    | {"time_step_init_scheme", "rescale_prenorm_residual", "residual_in_fp32"}
    | {"use_mambapy", "use_falcon_mambapy", "use_associative_scan", "rms_norm"}
    | {"d_model", "d_inner", "n_layer", "fused_add_norm", "ssm_cfg"}
    | {"pad_vocab_size_multiple"}
  ),
  harmless_tensors=(),
  tied=True,
)
"""Mamba layers alone; Falcon-Mamba norms what they are made of."""
