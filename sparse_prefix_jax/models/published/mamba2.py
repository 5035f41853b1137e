"""Hybrids with Mamba-2: a small model of each family, and published ones."""

from typing import Any

from sparse_prefix_jax.layers import (
  Branch,
  ExpertsConfig,
  Mamba2Config,
  MLPConfig,
  Norm,
  ParallelConfig,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published.common import (
  SMALL,
  alternating,
  plain_attention,
)

_NORM = Norm(centred=False, eps=1e-5)


def _mamba2(
  vocab_size: int, width: int, layers: int, sub: Mamba2Config, **others: Any
) -> ModelConfig:
  """A Mamba-2 model: one branch per layer."""
  kinds = {"m": (Branch(sub, pre=_NORM),)}
  return alternating(vocab_size, width, "m" * layers, kinds, **others)


def _granite(
  width: int,
  subs: tuple[Sublayer, Sublayer, Sublayer],
  *,
  layers: str = "mmmmmammmmmmmmmammmmmmmmmammmmmmmmmammmm",
  vocab_size: int = 100352,
  logits_scaling: float,
  **others: Any,
) -> ModelConfig:
  """A Granite-4 hybrid: of each layer m or a, a mixer and a feed-forward."""
  mamba, attention, feed_forward = (
    Branch(sub, pre=_NORM, scale=0.22) for sub in subs
  )
  return alternating(
    vocab_size,
    width,
    layers,
    {"m": (mamba, feed_forward), "a": (attention, feed_forward)},
    embedding_scale=12.0,
    logits_scale=1 / logits_scaling,
    **others,
  )


def _bamba(
  vocab_size: int,
  width: int,
  layers: str,
  subs: tuple[Sublayer, Sublayer, Sublayer],
  **others: Any,
) -> ModelConfig:
  """A Bamba model: of each layer m or a, a mixer and SwiGLU."""
  mamba, attention, feed_forward = (Branch(sub, pre=_NORM) for sub in subs)
  kinds = {"m": (mamba, feed_forward), "a": (attention, feed_forward)}
  return alternating(vocab_size, width, layers, kinds, **others)


def _nemotron(
  vocab_size: int,
  width: int,
  layers: str,
  subs: tuple[Sublayer, Sublayer, Sublayer],
  **others: Any,
) -> ModelConfig:
  """A Nemotron-H model: one branch per layer; - and E are its feed-forward."""
  mamba, attention, feed_forward = ((Branch(sub, pre=_NORM),) for sub in subs)
  kinds = {"M": mamba, "*": attention, "-": feed_forward, "E": feed_forward}
  others = {"tie_embeddings": False} | others
  return alternating(vocab_size, width, layers, kinds, **others)


def _experts(
  experts: int, chosen: int, hidden: int, shared: int
) -> ParallelConfig:
  """Experts, and SwiGLU of every token beside them."""
  chosen_ones = ExpertsConfig(experts=experts, chosen=chosen, hidden=hidden)
  return ParallelConfig((chosen_ones, SwiGLUConfig(hidden=shared)))


def _squared_experts(
  experts: int, chosen: int, hidden: int, shared: int, **others: Any
) -> ParallelConfig:
  """Experts of relu squared under sigmoids, and an MLP beside them."""
  chosen_ones = ExpertsConfig(
    experts=experts,
    chosen=chosen,
    hidden=hidden,
    score="sigmoid",
    factor=2.5,
    gated=False,
    activation="relu_squared",
    **others,
  )
  return ParallelConfig((chosen_ones, MLPConfig(hidden=shared)))


MAMBA2_PRESETS: dict[str, ModelConfig] = {
  "mamba2_tiny": _mamba2(
    512,
    64,
    2,
    Mamba2Config(heads=4, groups=2, head_width=32, state_width=32, bias=True),
    numerics=SMALL,
  ),
  "mamba2_2_7b": _mamba2(
    50288,
    2560,
    64,
    Mamba2Config(heads=80, groups=1, head_width=64, state_width=128),
  ),
  "granite_hybrid_tiny": _granite(
    64,
    (
      Mamba2Config(heads=4, groups=1, head_width=32, state_width=64),
      plain_attention(4, 2, 32, scale=1 / 64),
      _experts(8, 2, 32, 128),
    ),
    layers="ma",
    vocab_size=512,
    logits_scaling=6.0,
    numerics=SMALL,
  ),
  "granite_4_h_micro": _granite(
    2048,
    (
      Mamba2Config(heads=64, groups=1, head_width=64, state_width=128),
      plain_attention(32, 8, 64, scale=1 / 64),
      SwiGLUConfig(hidden=8192),
    ),
    logits_scaling=8.0,
  ),
  "granite_4_h_tiny": _granite(
    1536,
    (
      Mamba2Config(heads=48, groups=1, head_width=64, state_width=128),
      plain_attention(12, 4, 128, scale=1 / 128),
      _experts(64, 6, 512, 1024),
    ),
    logits_scaling=6.0,
  ),
  "granite_4_h_small": _granite(
    4096,
    (
      Mamba2Config(heads=128, groups=1, head_width=64, state_width=128),
      plain_attention(32, 8, 128, scale=1 / 128),
      _experts(72, 10, 768, 1536),
    ),
    logits_scaling=16.0,
  ),
  "bamba_tiny": _bamba(
    512,
    64,
    "ma",
    (
      Mamba2Config(heads=4, groups=2, head_width=32, state_width=32),
      plain_attention(4, 2, 32, rotary_width=16, rope_theta=1e4, bias=True),
      SwiGLUConfig(hidden=128, bias=True),
    ),
    numerics=SMALL,
  ),
  "bamba_9b": _bamba(
    128256,
    4096,
    "mmmmmmmmmammmmmmmmammmmmmmmammmm",
    (
      Mamba2Config(heads=128, groups=1, head_width=64, state_width=128),
      plain_attention(32, 8, 128, rotary_width=64, rope_theta=1e4),
      SwiGLUConfig(hidden=14336),
    ),
    tie_embeddings=False,
  ),
  "nemotron_h_tiny": _nemotron(
    512,
    64,
    "ME*",
    (
      Mamba2Config(
        heads=4, groups=2, head_width=32, state_width=32, least_step=1e-2
      ),
      plain_attention(4, 2, 32),
      _squared_experts(
        8, 2, 32, 64, groups=4, chosen_groups=2, latent=64, normalized=False
      ),
    ),
    numerics=SMALL,
  ),
  "nemotron_h_8b": _nemotron(
    131072,
    4096,
    "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    (
      Mamba2Config(
        heads=128, groups=8, head_width=64, state_width=128, least_step=1e-3
      ),
      plain_attention(32, 8, 128),
      MLPConfig(hidden=21504),
    ),
  ),
  "nemotron_3_nano_30b_a3b": _nemotron(
    131072,
    2688,
    "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    (
      Mamba2Config(
        heads=64, groups=8, head_width=64, state_width=128, least_step=1e-3
      ),
      plain_attention(32, 2, 128),
      _squared_experts(128, 6, 1856, 3712),
    ),
  ),
}
"""They take their sizes from the config.json that was published with them."""
