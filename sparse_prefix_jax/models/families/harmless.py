"""Keys of a config.json that change no logits, whatever they say.

A key is here because the forward pass of transformers does not read it for any
family of this folder: it says how a file was made, how a model was trained,
what a tokenizer or a sampler does, or what is computed beside the logits.
"""

_ORIGIN = """
_commit_hash _name_or_path architectures auto_map model_name name_or_path
transformers.js_config transformers_version unsloth_fixed unsloth_fixed_mtp
unsloth_version
"""
_TRAINING = """
attention_dropout embd_pdrop finetuning_task hidden_dropout id2label
initializer_range label2id num_labels output_router_logits pretraining_tp
problem_type resid_pdrop router_aux_loss_coef tf_legacy_loss
"""
_COMPUTING = """
_attn_implementation _attn_implementation_autoset attn_implementation
chunk_size_feed_forward experts_implementation gradient_checkpointing
output_attentions output_hidden_states return_dict torchscript use_bfloat16
use_cache use_return_dict
"""
_TOKENS = """
bos_token_id decoder_start_token_id eos_token_id forced_bos_token_id
forced_eos_token_id pad_token_id prefix sep_token_id task_specific_params
tokenizer_class
"""
_SAMPLING = """
bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty
max_length min_length no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_scores remove_invalid_values repetition_penalty
return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
# Images and sound never enter: only the text model is loaded.
_BESIDE_TEXT = """
audio_config audio_token_id image_token_id image_token_index
language_model_only video_token_id video_token_index vision_config
vision_end_token_id vision_start_token_id
"""
HARMLESS_KEYS = frozenset(
  (
    _ORIGIN + _TRAINING + _COMPUTING + _TOKENS + _SAMPLING + _BESIDE_TEXT
  ).split()
)
"""All of them."""
