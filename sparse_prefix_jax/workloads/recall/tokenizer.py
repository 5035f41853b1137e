"""The tokenizer of the recall task: one id per word, bytes for what is unknown.

It is written as the tokenizer.json that the package `tokenizers` reads: a BPE
without merges, whose vocabulary holds whole words with the mark of a space.
"""

import functools
import json
from typing import Any

from sparse_prefix_jax import extras
from sparse_prefix_jax.workloads.recall.vocabulary import (
  FIRST_WORD,
  SPACE,
  WORDS,
)

RECALL_TEMPLATE = """\
{% for message in messages %}
{{ '' if loop.first else ' ' }}{{ message.content | trim }}
{%- if message.role == 'assistant' %} .{% endif %}
{%- if message.role == 'user' and message.content.endswith('?')
    and not (loop.last and not add_generation_prompt) %}
{{- ' In' if 'Where' in message.content else ' A' }}
{%- endif %}
{%- endfor %}"""
"""The chat template of the task: an answer is one word, after In or A."""


def recall_tokenizer_json() -> str:
  """Returns the content of tokenizer.json.

  Example:
    >>> json.loads(recall_tokenizer_json())["model"]["vocab"]["<0x41>"]
    65
  """
  words = {SPACE + word: FIRST_WORD + i for i, word in enumerate(WORDS)}
  bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}
  model = {
    "type": "BPE",
    "byte_fallback": True,
    "ignore_merges": True,
    "vocab": bytes_ | {SPACE: FIRST_WORD - 1} | words,
    "merges": [],
  }
  decoders = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
  ]
  content = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {
      "type": "Metaspace",
      "replacement": SPACE,
      "prepend_scheme": "always",
      "split": True,
    },
    "decoder": {"type": "Sequence", "decoders": decoders},
    "model": model,
  }
  return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


@functools.cache
def recall_tokenizer() -> Any:
  """Makes the tokenizer; a text that begins with no space comes back as it was.

  Returns:
    The `tokenizers.Tokenizer`.

  Raises:
    MissingExtraError: If the package `tokenizers` is not installed.

  Example:
    >>> tokenizer = recall_tokenizer()
    >>> tokenizer.encode("Anna Berg lives in Oz .").tokens[2:]
    ['▁lives', '▁in', '▁', '<0x4F>', '<0x7A>', '▁.']
    >>> tokenizer.decode(tokenizer.encode("Anna Berg lives in Oz .").ids)
    'Anna Berg lives in Oz .'
  """
  library = extras.optional("tokenizers", "demo")
  return library.Tokenizer.from_str(recall_tokenizer_json())
