"""More small models of other families, as transformers configures them."""

import transformers

VOCABULARY = 64

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


def falcon_h1():
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
  "eos_token_id": 2,
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


def olmo_hybrid():
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


def mamba():
  for name, changes in _MAMBA_SHAPES.items():
    yield name, transformers.MambaConfig(**(_MAMBA | changes))


def falcon_mamba():
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


def jamba():
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


def recurrent_gemma():
  for name, changes in _GEMMA_SHAPES.items():
    yield name, transformers.RecurrentGemmaConfig(**(_GEMMA | changes))


_LFM2 = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 60,
  "num_hidden_layers": 2,
  "layer_types": ["conv", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "block_multiple_of": 8,
}
_LFM2_SHAPES = {
  "1": {},
  "2": {
    "conv_bias": True,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "block_ffn_dim_multiplier": 1.3,
  },
  "3": {
    "layer_types": ["full_attention", "conv"],
    "conv_L_cache": 5,
    "block_auto_adjust_ff_dim": False,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
  },
}


def lfm2():
  for name, changes in _LFM2_SHAPES.items():
    yield name, transformers.Lfm2Config(**(_LFM2 | changes))


_KIMI = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "layer_types": ["linear_attention", "linear_attention", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 4,
  "kv_lora_rank": 20,
  "qk_nope_head_dim": 12,
  "qk_rope_head_dim": 8,
  "v_head_dim": 16,
  "linear_num_heads": 3,
  "linear_head_dim": 16,
  "num_local_experts": 8,
  "num_experts_per_tok": 3,
  "moe_intermediate_size": 12,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
_KIMI_SHAPES = {
  "1": {},
  "2": {
    "layer_types": ["full_attention", "linear_attention"],
    "mlp_layer_types": ["sparse", "dense"],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_shared_experts": 2,
    "linear_conv_kernel_dim": 3,
    "norm_topk_prob": False,
    "tie_word_embeddings": True,
  },
  "3": {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "linear_num_heads": 2,
    "routed_scaling_factor": 1.5,
  },
}


def kimi_linear():
  for name, changes in _KIMI_SHAPES.items():
    yield name, transformers.KimiLinearConfig(**(_KIMI | changes))


_MINIMAX = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 12,
  "num_hidden_layers": 2,
  "layer_types": ["linear_attention", "full_attention"],
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_local_experts": 6,
  # Less than the tokens of a case.
  "block_size": 64,
  "linear_attn_alpha_factor": 1.5,
  "linear_attn_beta_factor": 0.7,
  "full_attn_alpha_factor": 1.3,
  "mlp_beta_factor": 0.8,
}
_MINIMAX_SHAPES = {
  "1": {},
  "2": {
    "layer_types": ["full_attention", "linear_attention"],
    "head_dim": 12,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": True,
  },
  "3": {
    "layer_types": ["linear_attention", "linear_attention"],
    "num_attention_heads": 2,
    "num_local_experts": 4,
    "mlp_alpha_factor": 2,
  },
}


def minimax():
  for name, changes in _MINIMAX_SHAPES.items():
    yield name, transformers.MiniMaxConfig(**(_MINIMAX | changes))
