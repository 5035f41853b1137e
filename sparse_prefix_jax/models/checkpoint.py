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
from sparse_prefix_jax.layers.branch import ResidualBranch
from sparse_prefix_jax.layers.choices import is_int, is_positive
from sparse_prefix_jax.layers.numerics import Numerics
from sparse_prefix_jax.layers.swiglu import SwiGLU
from sparse_prefix_jax.models import presets
from sparse_prefix_jax.models.config import ModelConfig, split_numerics
from sparse_prefix_jax.models.decoder import HybridDecoder

_LAYER_TYPES: dict[str, str] = {
  "linear_attention": presets.GATED_DELTA_NET,
  "full_attention": presets.ATTENTION,
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
}
_PLAIN: dict[str, Any] = {
  "hidden_act": "silu",
  "attention_bias": False,
  "attn_output_gate": True,
}
Read = Callable[[str], np.ndarray]
Parameters = Iterator[tuple[tuple[str, ...], Any, Callable[..., np.ndarray]]]


def load_pretrained(
  directory: str | pathlib.Path, **changes: Any
) -> tuple[HybridDecoder, ModelConfig]:
  """Loads the model of a Hugging Face directory, without PyTorch.

  Args:
    directory: Holds config.json and one or more .safetensors files.
    **changes: Fields of `ModelConfig` or of `Numerics` to replace, for example
      `dtype="bfloat16"` or `ladder=(4,)`.

  Returns:
    The model and its configuration.

  Raises:
    FileNotFoundError: If config.json or the weights are missing.
    ValueError: If it holds another architecture (a mixture of experts, say), a
      rotary scaling that depends on the total length, a damaged file, a tensor
      that is missing or of another shape; or if a field does not exist.

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
  """Reads the `ModelConfig` of a directory, with some fields replaced.

  Fields are read from `text_config` where the file has one, as those of models
  that also see. Nothing that would change the logits is passed over: what is
  not computed here is refused.

  Args:
    directory: Holds config.json.
    **changes: Fields of `ModelConfig` or of `Numerics` to replace. They do not
      excuse what the file holds.

  Returns:
    A frozen configuration.

  Raises:
    FileNotFoundError: If there is no config.json.
    ValueError: If it asks for what this library does not compute, if a field is
      missing, of another type or out of its range (naming it and the file), or
      if a field to replace does not exist.

  Example:
    config = read_config("Qwen3.5-0.8B", ladder=(4,))
  """
  numerics, rest = split_numerics(changes, Numerics())
  path = pathlib.Path(directory) / "config.json"
  raw = _json(path)
  text = raw.get("text_config", raw)
  if not isinstance(text, dict):
    raise ValueError(f"{path} holds no JSON object with a configuration.")
  _check_plain(text, path)
  _check_present(text, path)
  fields: dict[str, Any] = {
    field: _count(text, key, path) for field, key in _FIELDS.items()
  }
  fields["eps"] = _positive(text, "rms_norm_eps", path)
  fields["layer_types"] = _layer_types(text, path)
  fields["tie_embeddings"] = _tied(text, raw, path)
  fields |= _rotary_fields(text, path)
  return presets.hybrid(**fields, numerics=numerics).replace(**rest)


def _json(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object that the file holds."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist.")
  try:
    raw = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  if not isinstance(raw, dict):
    raise ValueError(f"{path} holds no JSON object with a configuration.")
  return raw


def _check_plain(text: dict[str, Any], path: pathlib.Path) -> None:
  """Refuses variants of the architecture that are not implemented.

  Each has the tensors of a plain model or more, so that loading would succeed
  and only the logits be wrong. Experts go by many names; all of them say so.
  """
  if text.get("model_type") != "qwen3_5_text":
    raise ValueError(
      f"model_type in {path} is {text.get('model_type')!r}; it must be "
      "'qwen3_5_text'."
    )
  for key, value in _PLAIN.items():
    if text.get(key, value) != value:
      raise ValueError(f"{key} in {path} is {text[key]!r}; only {value!r}.")
  for key, value in text.items():
    if value and ("expert" in key or "moe" in key):
      raise ValueError(
        f"{key} in {path} is {value!r}; mixtures of experts are not "
        "implemented, so it must be absent."
      )


def _check_present(text: dict[str, Any], path: pathlib.Path) -> None:
  """Refuses a configuration without what has no default."""
  needed = [*_FIELDS.values(), "rms_norm_eps"]
  needed += ["num_hidden_layers"] if text.get("layer_types") is None else []
  missing = [key for key in needed if key not in text]
  if missing:
    raise ValueError(f"{path} lacks {', '.join(missing)}.")


def _count(
  text: dict[str, Any], key: str, path: pathlib.Path, default: int | None = None
) -> int:
  """Reads a count, or takes the default where it is absent or null."""
  value = text.get(key)
  value = default if value is None else value
  if not is_int(value) or value < 1:
    raise ValueError(
      f"{key} in {path} is {value!r}; it must be an int above 0."
    )
  return value


def _positive(
  text: dict[str, Any],
  key: str,
  path: pathlib.Path,
  default: float | None = None,
) -> float:
  """Reads a number, or takes the default where it is absent or null."""
  value = text.get(key)
  value = default if value is None else value
  if not is_positive(value):
    raise ValueError(
      f"{key} in {path} is {value!r}; it must be a finite number above 0."
    )
  return float(value)


def _tied(
  text: dict[str, Any], raw: dict[str, Any], path: pathlib.Path
) -> bool:
  """Reads whether the head is the embedding, in the outer object first."""
  key = "tie_word_embeddings"
  value = text.get(key) if raw.get(key) is None else raw[key]
  if value not in (None, True, False):
    raise ValueError(
      f"tie_word_embeddings in {path} is {value!r}; it must be true or false."
    )
  return bool(value)


def _layer_types(text: dict[str, Any], path: pathlib.Path) -> tuple[str, ...]:
  """Reads the kinds of the layers: a list, or attention at every n-th.

  Raises:
    ValueError: If a kind is unknown, or if the list is not as long as
      `num_hidden_layers` says: a shorter one would drop layers silently.
  """
  interval = _count(text, "full_attention_interval", path, 4)
  kinds = text.get("layer_types")
  if kinds is None:
    return tuple(
      presets.GATED_DELTA_NET if (i + 1) % interval else presets.ATTENTION
      for i in range(_count(text, "num_hidden_layers", path))
    )
  if not isinstance(kinds, list) or not kinds:
    raise ValueError(f"layer_types in {path} is {kinds!r}; it must be a list.")
  for kind in map(str, kinds):
    if kind not in _LAYER_TYPES:
      raise ValueError(
        f"layer_types in {path} holds {kind!r}; it may hold "
        f"{' and '.join(_LAYER_TYPES)}."
      )
  layers = _count(text, "num_hidden_layers", path, len(kinds))
  if layers != len(kinds):
    raise ValueError(
      f"layer_types in {path} names {len(kinds)} layers; it must name "
      f"num_hidden_layers = {layers}."
    )
  return tuple(_LAYER_TYPES[kind] for kind in kinds)


def _rotary_fields(text: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """Reads width and base of the rotary embedding; scalings are refused.

  Old files keep the base and the share of rotated channels beside the scaling,
  new ones all of it in `rope_parameters`; a file may hold both. Both are
  inspected, and where they disagree on a number the new one decides.

  Raises:
    ValueError: If either holds a scaling, or a number out of its range.
  """
  rope = {key: text.get(key) for key in ("partial_rotary_factor", "rope_theta")}
  for key in ("rope_scaling", "rope_parameters"):
    rope |= _unscaled(text, key, path)
  theta = _positive(rope, "rope_theta", path, 1e4)
  partial = _positive(rope, "partial_rotary_factor", path, 0.25)
  if partial > 1:
    raise ValueError(
      f"partial_rotary_factor in {path} is {partial}; it must be at most 1."
    )
  width = int(_count(text, "head_dim", path) * partial)
  return {"rotary_width": width, "rope_theta": theta}


def _unscaled(
  text: dict[str, Any], key: str, path: pathlib.Path
) -> dict[str, Any]:
  """Reads what one object says of the rotary embedding, without its nulls.

  The kind stands under `rope_type`, in old files under `type`.
  """
  rope = text.get(key)
  rope = {} if rope is None else rope
  if not isinstance(rope, dict):
    raise ValueError(
      f"{key} in {path} is {rope!r}; it must be an object or null."
    )
  for kind in (rope.get("rope_type"), rope.get("type")):
    if kind not in (None, "default"):
      raise ValueError(
        f"rope_type in {path} is {kind!r}; only 'default' is allowed in {key}, "
        "since an angle that depends on the total length has no fixed value at "
        "a position."
      )
  return {name: value for name, value in rope.items() if value is not None}


def _reader(directory: pathlib.Path) -> Read:
  """Makes a reader of tensors by name, whatever prefix and file they are in.

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
  """Lists the tensors of a file; its header tells whether it is whole."""
  try:
    with safe_open(file, framework="flax") as tensors:
      return list(tensors.keys())
  except SafetensorError as error:
    raise ValueError(f"{file} is damaged: {error}.") from error


def _plain_name(key: str) -> str:
  """Removes the prefixes of causal and conditional models from a name."""
  for prefix in ("model.language_model.", "model."):
    key = key.removeprefix(prefix)
  return key


def _parameters(model: HybridDecoder) -> Parameters:
  """Yields every parameter, the tensors it comes from, and how."""
  yield ("embed_tokens.weight",), model.embedding, _same
  yield ("norm.weight",), model.norm, _same
  if not model.config.tie_embeddings:
    yield ("lm_head.weight",), model.unembedding, _same
  for index, branch in enumerate(model.branches):
    for names, parameter, convert in _branch_parameters(branch):
      full = tuple(f"layers.{index // 2}.{name}" for name in names)
      yield full, parameter, convert


def _branch_parameters(branch: ResidualBranch) -> Parameters:
  """Yields one branch's norm and its sublayer; two branches are a layer."""
  if isinstance(branch.sub, SwiGLU):
    yield ("post_attention_layernorm.weight",), branch.pre, _same
    yield ("mlp.gate_proj.weight",), branch.sub.gate, _transposed
    yield ("mlp.up_proj.weight",), branch.sub.up, _transposed
    yield ("mlp.down_proj.weight",), branch.sub.down, _transposed
    return
  yield ("input_layernorm.weight",), branch.pre, _same
  if isinstance(branch.sub, GatedAttention):
    yield from _attention_parameters(branch.sub)
  elif isinstance(branch.sub, GatedDeltaNet):
    yield from _gated_delta_net_parameters(branch.sub)


def _attention_parameters(mixer: GatedAttention) -> Parameters:
  """q_proj holds query and gate of a head side by side, as `in_query_gate`."""
  yield ("self_attn.q_proj.weight",), mixer.in_query_gate, _transposed
  yield ("self_attn.k_proj.weight",), mixer.in_key, _transposed
  yield ("self_attn.v_proj.weight",), mixer.in_value, _transposed
  yield ("self_attn.o_proj.weight",), mixer.out, _transposed
  yield ("self_attn.q_norm.weight",), mixer.query_norm, _same
  yield ("self_attn.k_norm.weight",), mixer.key_norm, _same


def _gated_delta_net_parameters(mixer: GatedDeltaNet) -> Parameters:
  """Two narrow projections become one product: first decay, then beta."""
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
  """Leaves a tensor that is stored as it is used."""
  return x


def _transposed(x: np.ndarray) -> np.ndarray:
  """Turns [outputs inputs] into [inputs outputs]."""
  return x.T


def _taps_first(x: np.ndarray) -> np.ndarray:
  """Turns [channels 1 w] into [w channels]."""
  return x[:, 0].T


def _side_by_side(decay: np.ndarray, beta: np.ndarray) -> np.ndarray:
  """Turns two tensors [hv inputs] into one [inputs 2 hv], decays first."""
  return np.concatenate([decay, beta]).T
