"""Reads a Hugging Face directory of the Qwen3.5 text architecture."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from sparse_prefix_jax.layers import GatedAttention, GatedDeltaNet
from sparse_prefix_jax.models.config import (
  ATTENTION,
  GATED_DELTA_NET,
  ModelConfig,
)
from sparse_prefix_jax.models.decoder import DecoderLayer, HybridDecoder

_LAYER_TYPES: dict[str, str] = {
  "linear_attention": GATED_DELTA_NET,
  "full_attention": ATTENTION,
}
_FIELDS = {
  "vocab_size": "vocab_size",
  "width": "hidden_size",
  "hidden": "intermediate_size",
  "key_heads": "linear_num_key_heads",
  "value_heads": "linear_num_value_heads",
  "key_width": "linear_key_head_dim",
  "value_width": "linear_value_head_dim",
  "window": "linear_conv_kernel_dim",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "head_width": "head_dim",
  "eps": "rms_norm_eps",
}
Read = Callable[[str], np.ndarray]
Parameters = Iterator[tuple[tuple[str, ...], Any, Callable[..., np.ndarray]]]


def load_pretrained(
  directory: str | pathlib.Path, **changes: Any
) -> tuple[HybridDecoder, ModelConfig]:
  """The model that a Hugging Face directory holds, without PyTorch.

  Args:
    directory: Holds config.json and one or more .safetensors files.
    **changes: Fields of `ModelConfig` to replace, for example
      `dtype="bfloat16"` or `ladder=(4,)`.

  Returns:
    The model and its configuration.

  Raises:
    FileNotFoundError: If config.json or the weights are missing.
    ValueError: For another architecture, a rotary scaling that depends on the
      total length, a damaged file, a tensor that is missing or has another
      shape.

  Example:
    model, config = load_pretrained("Qwen3.5-0.8B", dtype="bfloat16")
  """
  directory = pathlib.Path(directory)
  config = read_config(directory, **changes)
  abstract = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  read = _reader(directory)
  for names, parameter, convert in _parameters(abstract):
    value = convert(*map(read, names))
    if value.shape != parameter.shape:
      raise ValueError(
        f"{' and '.join(names)} in {directory} has shape {value.shape}; "
        f"config.json asks for {parameter.shape}."
      )
    parameter.set_value(jnp.asarray(value, parameter.dtype))
  return abstract, config


def read_config(directory: str | pathlib.Path, **changes: Any) -> ModelConfig:
  """`ModelConfig` of a directory's config.json, with fields replaced.

  Raises:
    FileNotFoundError: If there is no config.json.
    ValueError: For what this library does not compute, naming the field.
  """
  path = pathlib.Path(directory) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist.")
  try:
    raw = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  text = raw.get("text_config", raw) if isinstance(raw, dict) else raw
  if not isinstance(text, dict):
    raise ValueError(f"{path} holds no JSON object with a configuration.")
  if text.get("model_type") != "qwen3_5_text":
    raise ValueError(
      f"model_type in {path} is {text.get('model_type')!r}; it must be "
      "'qwen3_5_text'."
    )
  _check_plain(text, path)
  needed = list(_FIELDS.values())
  needed += [] if "layer_types" in text else ["num_hidden_layers"]
  missing = [key for key in needed if key not in text]
  if missing:
    raise ValueError(f"{path} lacks {', '.join(missing)}.")
  fields = {field: text[key] for field, key in _FIELDS.items()}
  fields |= _rotary_fields(text, path)
  fields["layer_types"] = _layer_types(text)
  fields["tie_embeddings"] = bool(
    raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
  )
  return ModelConfig(**(fields | changes))


def _layer_types(text: dict[str, Any]) -> tuple[str, ...]:
  """Kinds of the layers: listed, or attention at every n-th."""
  if "layer_types" in text:
    kinds = text["layer_types"]
    return tuple(_LAYER_TYPES.get(str(kind), str(kind)) for kind in kinds)
  interval = text.get("full_attention_interval", 4)
  return tuple(
    GATED_DELTA_NET if (i + 1) % interval else ATTENTION
    for i in range(text["num_hidden_layers"])
  )


def _check_plain(text: dict[str, Any], path: pathlib.Path) -> None:
  """Refuses variants of the architecture that are not implemented."""
  plain = {"hidden_act": "silu", "attention_bias": False}
  for key, value in plain.items():
    if text.get(key, value) != value:
      raise ValueError(f"{key} in {path} is {text[key]!r}; only {value!r}.")


def _rotary_fields(text: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """Width and base of the rotary embedding; scalings are refused.

  Old files keep the base and the share of rotated channels beside the scaling,
  new ones all of it in `rope_parameters`.
  """
  rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind != "default":
    raise ValueError(
      f"rope_type in {path} is {kind!r}; only 'default' is allowed, since an "
      "angle that depends on the total length has no fixed value at a position."
    )
  partial = rope.get("partial_rotary_factor")
  if partial is None:
    partial = text.get("partial_rotary_factor", 0.25)
  theta = rope.get("rope_theta", text.get("rope_theta", 1e4))
  return {
    "rotary_width": int(text["head_dim"] * partial),
    "rope_theta": float(theta),
  }


def _reader(directory: pathlib.Path) -> Read:
  """Reads tensors by name, whatever prefix and file they stand in.

  Returns:
    A function of the plain name. It raises ValueError for a tensor that no
    file holds, and opens the file at each call: one tensor is in memory twice
    at a time, never the model.
  """
  files = sorted(directory.glob("*.safetensors"))
  if not files:
    raise FileNotFoundError(f"{directory} holds no .safetensors file.")
  where: dict[str, tuple[pathlib.Path, str]] = {}
  for file in files:
    names = _names(file)
    where |= {_plain_name(name): (file, name) for name in names}

  def read(name: str) -> np.ndarray:
    if name not in where:
      raise ValueError(f"{directory} has no tensor {name}.")
    file, key = where[name]
    with safe_open(file, framework="flax") as tensors:
      return np.asarray(tensors.get_tensor(key))

  return read


def _names(file: pathlib.Path) -> list[str]:
  """Names of the tensors in a file; its header tells whether it is whole."""
  try:
    with safe_open(file, framework="flax") as tensors:
      return list(tensors.keys())
  except SafetensorError as error:
    raise ValueError(f"{file} is damaged: {error}.") from error


def _plain_name(key: str) -> str:
  """Name without the prefixes of causal and conditional models."""
  for prefix in ("model.language_model.", "model."):
    key = key.removeprefix(prefix)
  return key


def _parameters(model: HybridDecoder) -> Parameters:
  """Every parameter, the tensors it comes from, and how."""
  yield ("embed_tokens.weight",), model.embedding, _same
  yield ("norm.weight",), model.norm, _same
  if not model.config.tie_embeddings:
    yield ("lm_head.weight",), model.unembedding, _same
  for index, layer in enumerate(model.layers):
    for names, parameter, convert in _layer_parameters(layer):
      full = tuple(f"layers.{index}.{name}" for name in names)
      yield full, parameter, convert


def _layer_parameters(layer: DecoderLayer) -> Parameters:
  """Of one layer: its norms, its feed-forward layer and its mixer."""
  """One layer: norms, feed-forward, and the mixer that it has."""
  yield ("input_layernorm.weight",), layer.mixer_norm, _same
  yield ("post_attention_layernorm.weight",), layer.mlp_norm, _same
  yield ("mlp.gate_proj.weight",), layer.mlp.gate, _transposed
  yield ("mlp.up_proj.weight",), layer.mlp.up, _transposed
  yield ("mlp.down_proj.weight",), layer.mlp.down, _transposed
  if isinstance(layer.mixer, GatedAttention):
    yield from _attention_parameters(layer.mixer)
  elif isinstance(layer.mixer, GatedDeltaNet):
    yield from _gated_delta_net_parameters(layer.mixer)


def _attention_parameters(mixer: GatedAttention) -> Parameters:
  """q_proj holds query and gate of a head side by side, as `in_query_gate`."""
  """Queries and gates interleave per head there as here."""
  yield ("self_attn.q_proj.weight",), mixer.in_query_gate, _transposed
  yield ("self_attn.k_proj.weight",), mixer.in_key, _transposed
  yield ("self_attn.v_proj.weight",), mixer.in_value, _transposed
  yield ("self_attn.o_proj.weight",), mixer.out, _transposed
  yield ("self_attn.q_norm.weight",), mixer.query_norm, _same
  yield ("self_attn.k_norm.weight",), mixer.key_norm, _same


def _gated_delta_net_parameters(mixer: GatedDeltaNet) -> Parameters:
  """Two narrow projections become one product: first decay, then beta."""
  """The two narrow products become one; A_log is the log of the rate."""
  yield ("linear_attn.in_proj_qkv.weight",), mixer.in_qkv, _transposed
  yield ("linear_attn.in_proj_z.weight",), mixer.in_gate, _transposed
  narrow = ("linear_attn.in_proj_a.weight", "linear_attn.in_proj_b.weight")
  yield narrow, mixer.in_decay_beta, _side_by_side
  yield ("linear_attn.conv1d.weight",), mixer.conv, _taps_first
  yield ("linear_attn.A_log",), mixer.log_rate, _same
  yield ("linear_attn.dt_bias",), mixer.decay_bias, _same
  yield ("linear_attn.norm.weight",), mixer.norm, _same
  yield ("linear_attn.out_proj.weight",), mixer.out, _transposed


def _same(x: np.ndarray) -> np.ndarray:
  """Stored as it is used."""
  return x


def _transposed(x: np.ndarray) -> np.ndarray:
  """[outputs inputs] -> [inputs outputs]."""
  return x.T


def _taps_first(x: np.ndarray) -> np.ndarray:
  """[channels 1 w] -> [w channels]."""
  return x[:, 0].T


def _side_by_side(decay: np.ndarray, beta: np.ndarray) -> np.ndarray:
  """Two of [hv inputs] -> [inputs 2 hv], decays first."""
  return np.concatenate([decay, beta]).T
