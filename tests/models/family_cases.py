"""Small random models of other families, as transformers configures them.

Shapes of one family differ in what a reader could get wrong: ratios of heads,
groups, tied embeddings, biases, the order of layers.
"""

import transformers

VOCABULARY = 64
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


_FALCON = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "mamba_d_ssm": 48,
  "mamba_n_heads": 4,
  "mamba_d_head": 12,
  "mamba_d_state": 8,
  "mamba_chunk_size": 32,
  "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
  # All factors differ, and from their reciprocals.
  "embedding_multiplier": 5.5,
  "lm_head_multiplier": 0.4,
  "key_multiplier": 0.7,
  "attention_in_multiplier": 1.3,
  "attention_out_multiplier": 0.9,
  "ssm_in_multiplier": 1.25,
  "ssm_out_multiplier": 0.6,
  "mlp_multipliers": [0.8, 1.7],
  "ssm_multipliers": [0.35, 1.4, 0.75, 1.6, 0.5],
}
_FALCON_SHAPES = {
  "1": {"mamba_proj_bias": True, "mlp_bias": True},
  "2": {
    "mamba_rms_norm": True,
    "mamba_n_groups": 2,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "num_key_value_heads": 1,
  },
  "3": {
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "mamba_n_groups": 4,
    "projectors_bias": True,
    "mamba_conv_bias": False,
    "num_hidden_layers": 1,
  },
}


def _falcon_h1():
  for name, changes in _FALCON_SHAPES.items():
    yield name, transformers.FalconH1Config(**(_FALCON | changes))


_OLMO = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "layer_types": ["linear_attention", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 2,
  "linear_key_head_dim": 12,
  "linear_value_head_dim": 24,
  "pad_token_id": 0,
}
_OLMO_SHAPES = {
  "1": {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
  "2": {
    "attention_bias": True,
    "num_key_value_heads": 4,
    "linear_num_value_heads": 4,
    "tie_word_embeddings": True,
  },
  "3": {
    "layer_types": ["full_attention", "linear_attention"],
    "linear_allow_neg_eigval": False,
    "num_key_value_heads": 1,
    "linear_conv_kernel_dim": 3,
  },
}


def _olmo_hybrid():
  for name, changes in _OLMO_SHAPES.items():
    yield name, transformers.OlmoHybridConfig(**(_OLMO | changes))


_MAMBA = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "state_size": 8,
  "time_step_rank": 3,
}
_MAMBA_SHAPES = {
  "1": {},
  "2": {"use_bias": True, "tie_word_embeddings": False, "expand": 3},
  "3": {"use_conv_bias": False, "conv_kernel": 3, "time_step_rank": "auto"},
}


def _mamba():
  for name, changes in _MAMBA_SHAPES.items():
    yield name, transformers.MambaConfig(**(_MAMBA | changes))


def _falcon_mamba():
  for name, changes in _MAMBA_SHAPES.items():
    fields = _MAMBA | changes | {"mixer_rms_eps": 1e-3}
    yield name, transformers.FalconMambaConfig(**fields)


_JAMBA = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "attn_layer_period": 2,
  "attn_layer_offset": 1,
  "expert_layer_period": 2,
  "expert_layer_offset": 0,
  "num_experts": 6,
  "mamba_d_state": 8,
  "mamba_dt_rank": 3,
}
_JAMBA_SHAPES = {
  "1": {},
  "2": {
    "attn_layer_offset": 0,
    "expert_layer_offset": 1,
    "num_key_value_heads": 1,
    "num_experts": 5,
    "num_experts_per_tok": 1,
    "mamba_proj_bias": True,
    "tie_word_embeddings": True,
  },
  "3": {"num_experts": 1, "mamba_conv_bias": False, "mamba_expand": 3},
}


def _jamba():
  for name, changes in _JAMBA_SHAPES.items():
    yield name, transformers.JambaConfig(**(_JAMBA | changes))


_GEMMA = {
  "vocab_size": VOCABULARY,
  # The root of the width is not a number of few bits.
  "hidden_size": 48,
  "intermediate_size": 80,
  "num_hidden_layers": 2,
  "block_types": ["recurrent", "attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 1,
  "attention_window_size": 48,
  "logits_soft_cap": 3.0,
}
_GEMMA_SHAPES = {
  "1": {},
  "2": {
    "num_key_value_heads": 2,
    "attention_bias": True,
    "lru_width": 48,
    "hidden_size": 32,
    "attention_window_size": 16,
  },
  "3": {
    "block_types": ["attention", "recurrent", "recurrent"],
    "num_hidden_layers": 2,
    "conv1d_width": 3,
    "num_attention_heads": 2,
    "attention_window_size": 100,
  },
}


def _recurrent_gemma():
  for name, changes in _GEMMA_SHAPES.items():
    yield name, transformers.RecurrentGemmaConfig(**(_GEMMA | changes))


FAMILIES = {
  "qwen3_5_moe": _qwen3_5_moe,
  "qwen3_next": _qwen3_next,
  "mamba2": _mamba2,
  "granite_hybrid": _granite_hybrid,
  "bamba": _bamba,
  "nemotron_h": _nemotron_h,
  "falcon_h1": _falcon_h1,
  "olmo_hybrid": _olmo_hybrid,
  "mamba": _mamba,
  "falcon_mamba": _falcon_mamba,
  "jamba": _jamba,
  "recurrent_gemma": _recurrent_gemma,
}
"""A family's cases: names, and configurations of transformers."""


def cases():
  """Yields the name of every case of every family, and its configuration."""
  for family, shapes in FAMILIES.items():
    for name, config in shapes():
      yield f"{family}_{name}", config
