"""Small random models of other families, as transformers configures them.

Shapes of one family differ in what a reader could get wrong: ratios of heads,
groups, tied embeddings, biases, the order of layers.
"""

import transformers

from tests.models import more_family_cases

VOCABULARY = more_family_cases.VOCABULARY
_ROPE = {
  "rope_type": "default",
  "rope_theta": 1e4,
  "partial_rotary_factor": 0.5,
}
_QWEN = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "layer_types": ["linear_attention", "linear_attention", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 12,
  "moe_intermediate_size": 12,
  "shared_expert_intermediate_size": 20,
  "num_experts": 8,
  "num_experts_per_tok": 3,
  "rope_parameters": _ROPE,
}
_QWEN_SHAPES = {
  "1": {},
  "2": {
    "hidden_size": 48,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 16,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": True,
  },
  "3": {
    "layer_types": ["full_attention", "linear_attention"],
    "num_hidden_layers": 2,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 4,
    "num_experts": 5,
    "num_experts_per_tok": 2,
  },
}


def _qwen3_5_moe():
  for name, changes in _QWEN_SHAPES.items():
    yield name, transformers.Qwen3_5MoeTextConfig(**(_QWEN | changes))


_NEXT_SHAPES = {
  "1": {"norm_topk_prob": False},
  "2": {"mlp_only_layers": [1], "intermediate_size": 40},
  "3": {"decoder_sparse_step": 2, "intermediate_size": 24},
}


def _qwen3_next():
  for name, changes in _NEXT_SHAPES.items():
    fields = _QWEN | _QWEN_SHAPES[name] | changes
    yield name, transformers.Qwen3NextConfig(**fields)


_MAMBA2 = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "num_heads": 4,
  "head_dim": 16,
  "state_size": 12,
  "n_groups": 2,
  "chunk_size": 32,
}
_MAMBA2_SHAPES = {
  "1": {},
  "2": {"n_groups": 1, "use_bias": True, "tie_word_embeddings": True},
  "3": {"n_groups": 4, "use_conv_bias": False, "expand": 3, "head_dim": 24}
  | {"conv_kernel": 3},
}


def _mamba2():
  for name, changes in _MAMBA2_SHAPES.items():
    yield name, transformers.Mamba2Config(**(_MAMBA2 | changes))


_GRANITE = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "num_hidden_layers": 3,
  "layer_types": ["linear_attention", "full_attention", "linear_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_local_experts": 0,
  "intermediate_size": 12,
  "shared_intermediate_size": 40,
  "mamba_n_heads": 4,
  "mamba_d_head": 16,
  "mamba_d_state": 12,
  "mamba_chunk_size": 32,
  "embedding_multiplier": 12,
  "residual_multiplier": 0.22,
  "attention_multiplier": 0.25,
  "logits_scaling": 0.3,
  "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
_GRANITE_SHAPES = {
  "1": {},
  "2": {
    "mamba_n_groups": 2,
    "mamba_proj_bias": True,
    "mamba_conv_bias": False,
    "position_embedding_type": "rope",
    "tie_word_embeddings": True,
    "num_key_value_heads": 1,
  },
  "3": {
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "mamba_n_groups": 4,
    "layer_types": ["full_attention", "linear_attention"],
    "num_hidden_layers": 2,
  },
}


def _granite_hybrid():
  for name, changes in _GRANITE_SHAPES.items():
    fields = _GRANITE | changes
    yield name, transformers.GraniteMoeHybridConfig(**fields)


_BAMBA = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "attn_layer_indices": [1],
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "mamba_n_heads": 4,
  "mamba_d_head": 16,
  "mamba_d_state": 12,
  "mamba_chunk_size": 32,
  "rope_parameters": _ROPE,
}
_BAMBA_SHAPES = {
  "1": {},
  "2": {
    "attn_layer_indices": [0],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_n_groups": 2,
    "mamba_proj_bias": True,
    "tie_word_embeddings": True,
  },
  "3": {
    "attention_bias": True,
    "mlp_bias": True,
    "mamba_conv_bias": False,
    "mamba_n_groups": 4,
    "mamba_d_conv": 3,
  },
}


def _bamba():
  for name, changes in _BAMBA_SHAPES.items():
    yield name, transformers.BambaConfig(**(_BAMBA | changes))


_NEMOTRON = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "layers_block_type": ["linear_attention", "mlp", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 12,
  "mamba_num_heads": 4,
  "mamba_head_dim": 12,
  "ssm_state_size": 8,
  "n_groups": 2,
  "chunk_size": 32,
  # Steps are about 0.5 here: many are raised to this one.
  "time_step_min": 0.5,
  "n_routed_experts": 8,
  "num_experts_per_tok": 3,
  "moe_intermediate_size": 12,
  "moe_shared_expert_intermediate_size": 20,
  "routed_scaling_factor": 2.5,
}
_NEMOTRON_SHAPES = {
  "1": {"use_bias": True, "mlp_bias": True, "use_conv_bias": False},
  "2": {"layers_block_type": ["full_attention", "moe", "linear_attention"]}
  | {"n_groups": 1, "num_key_value_heads": 1},
  "3": {
    "layers_block_type": ["linear_attention", "moe", "mlp"],
    "n_group": 4,
    "topk_group": 2,
    "moe_latent_size": 24,
    "norm_topk_prob": False,
    "n_groups": 4,
  },
}


def _nemotron_h():
  for name, changes in _NEMOTRON_SHAPES.items():
    yield name, transformers.NemotronHConfig(**(_NEMOTRON | changes))


FAMILIES = {
  "qwen3_5_moe": _qwen3_5_moe,
  "qwen3_next": _qwen3_next,
  "mamba2": _mamba2,
  "granite_hybrid": _granite_hybrid,
  "bamba": _bamba,
  "nemotron_h": _nemotron_h,
  "falcon_h1": more_family_cases.falcon_h1,
  "olmo_hybrid": more_family_cases.olmo_hybrid,
  "mamba": more_family_cases.mamba,
  "falcon_mamba": more_family_cases.falcon_mamba,
  "jamba": more_family_cases.jamba,
  "recurrent_gemma": more_family_cases.recurrent_gemma,
  "lfm2": more_family_cases.lfm2,
  "minimax": more_family_cases.minimax,
  "kimi_linear": more_family_cases.kimi_linear,
}
"""A family's cases: names, and configurations of transformers."""


def cases():
  """Yields the name of every case of every family, and its configuration."""
  for family, shapes in FAMILIES.items():
    for name, config in shapes():
      yield f"{family}_{name}", config
