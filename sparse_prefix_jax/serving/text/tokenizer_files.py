"""What lies beside tokenizer.json in the folder of a model."""

import pathlib
from collections.abc import Mapping
from typing import Any

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.models.checkpoint.json_object import read_json_object
from sparse_prefix_jax.serving.text.template import checked_templates

_CONFIG = "tokenizer_config.json"
_TOKENS = "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"


def read_tokenizer_files(
  folder: pathlib.Path,
) -> tuple[dict[str, str], dict[str, str]]:
  """Reads the chat templates and the special tokens of a folder.

  Args:
    folder: Of a model. Each file may be missing.

  Returns:
    Templates and tokens by their names.

  Raises:
    ValueError: If a file is damaged.
  """
  config, tokens = (
    read_json_object(folder / name) if (folder / name).exists() else {}
    for name in (_CONFIG, _TOKENS)
  )
  template = _of_config(folder, config)
  if (folder / _TEMPLATE).is_file():
    template = _read_text(folder / _TEMPLATE)
  more = sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))
  templates = checked_templates(template)
  templates |= {file.stem: _read_text(file) for file in more}
  return templates, _special_tokens(tokens) | _special_tokens(config)


def _of_config(folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
  """The template, or those by their names, of tokenizer_config.json."""
  template = config.get("chat_template")
  if isinstance(template, list):
    return {
      one.get("name"): one.get("template")
      for one in template
      if isinstance(one, dict)
    }
  if not isinstance(template, str | dict | None):
    raise ValueError(
      f"chat_template in {folder / _CONFIG} is {brief(template)}; it "
      "must be a text."
    )
  return template


def _read_text(file: pathlib.Path) -> str:
  """The text of a file."""
  try:
    return file.read_text(encoding="utf-8")
  except UnicodeDecodeError:
    raise ValueError(f"{file} is not UTF-8.") from None


def _special_tokens(named: Mapping[str, Any]) -> dict[str, str]:
  """The tokens that a file names, as texts."""
  tokens = {}
  for name, value in named.items():
    if not name.endswith("_token"):
      continue
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str):
      tokens[name] = text
  return tokens
