"""A tokenizer with what serving needs besides: a chat template, ends, bytes."""

import bisect
import json
import operator
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_prefix_jax import extras
from sparse_prefix_jax.cache.request import listed
from sparse_prefix_jax.kinds import brief, path_of
from sparse_prefix_jax.serving.text.template import (
  ChatTemplate,
  Message,
  check_characters,
  checked_messages,
  checked_templates,
  checked_variables,
)
from sparse_prefix_jax.serving.text.tokenizer_files import read_tokenizer_files
from sparse_prefix_jax.whole_numbers import check_whole

_FILE = "tokenizer.json"
# Each end of a message takes a rendering of what is before it. Those in the
# middle of a long conversation were boundaries of its earlier turns.
_FIRST_ENDS, _LAST_ENDS = 8, 8
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class ChatPrompt(NamedTuple):
  """A conversation as ids.

  Attributes:
    ids: Int32. [t]
    boundaries: How many ids there are up to the end of each message, ascending;
      of a long conversation, of the first eight and the last eight. The last
      is the boundary before the generation prompt.
  """

  ids: np.ndarray
  boundaries: tuple[int, ...]


class TextTokenizer:
  """Text to ids and back, and conversations to prompts.

  Attributes:
    vocab_size: One more than the largest id that it knows.
    end_ids: Ids that end a text.
    template: The chat template.

  Example:
    >>> from sparse_prefix_jax.workloads.recall.tokenizer import (
    ...   recall_tokenizer,
    ... )
    >>> tokenizer = TextTokenizer(recall_tokenizer())
    >>> tokenizer.decode(tokenizer.encode("Anna lives in Oslo .").tolist())
    'Anna lives in Oslo .'
  """

  def __init__(
    self,
    tokenizer: Any,
    *,
    chat_template: str | Mapping[str, str] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    end_ids: Sequence[int] = (),
  ) -> None:
    """Wraps a tokenizer.

    Args:
      tokenizer: A `tokenizers.Tokenizer`.
      chat_template: Jinja, or several by name: "tool_use" is taken where tools
        are given, "default" elsewhere; None for a plain one, a name before each
        text.
      special_tokens: Variables of the template, such as eos_token; that one
        ends a text too.
      end_ids: What else ends a text.

    Raises:
      ValueError: If it is no tokenizer, it cuts or pads texts, the template
        is no Jinja, or one of the others is of another type.
      MissingExtraError: If `tokenizers` or `jinja2` is not installed.
    """
    library = extras.optional("tokenizers", "text")
    if not isinstance(tokenizer, library.Tokenizer):
      raise ValueError(
        f"tokenizer is a {type(tokenizer).__name__}; it must be a "
        "tokenizers.Tokenizer, such as Tokenizer.from_file makes."
      )
    if tokenizer.truncation or tokenizer.padding:
      raise ValueError(
        "tokenizer cuts or pads texts; call its no_truncation() and "
        "no_padding()."
      )
    self._tokenizer = tokenizer
    tokens = _checked_tokens(special_tokens)
    self._templates = {
      name: ChatTemplate(source, tokens)
      for name, source in checked_templates(chat_template).items()
    }
    self.template = self._templates["default"]
    self.vocab_size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    added = tokenizer.get_added_tokens_decoder()
    self._special = {i for i, token in added.items() if token.special}
    self._added = frozenset(added)
    steps = _decoder_types(tokenizer)
    self._falls_back = "ByteFallback" in steps
    self._is_byte_level = "ByteLevel" in steps
    end = tokenizer.token_to_id(tokens.get("eos_token", ""))
    self.end_ids = _checked_ends(end_ids) | ({end} - {None})

  @classmethod
  def from_directory(cls, directory: str | pathlib.Path) -> "TextTokenizer":
    """Reads the tokenizer of a model's folder.

    Args:
      directory: Holds tokenizer.json; beside it tokenizer_config.json,
        special_tokens_map.json, chat_template.jinja and the templates in
        additional_chat_templates are read where they are.

    Raises:
      FileNotFoundError: If it is no folder, or holds no tokenizer.json.
      ValueError: If a file is damaged, or `directory` is no path.
      MissingExtraError: If `tokenizers` or `jinja2` is not installed.
    """
    folder = path_of("directory", directory, "folder")
    library = extras.optional("tokenizers", "text")
    if not folder.is_dir():
      raise FileNotFoundError(f"{folder} is no folder; {_FILE} lies in one.")
    if not (folder / _FILE).is_file():
      raise FileNotFoundError(f"{folder} holds no {_FILE}.")
    try:
      tokenizer = library.Tokenizer.from_file(str(folder / _FILE))
    # The library raises Exception itself, whatever is wrong.
    except Exception as error:
      reason = " ".join(str(error).split()).rstrip(".")
      raise ValueError(f"{folder / _FILE} is damaged: {reason}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    templates, tokens = read_tokenizer_files(folder)
    return cls(tokenizer, chat_template=templates, special_tokens=tokens)

  def check_vocabulary(self, vocab_size: int) -> None:
    """Refuses a model of another vocabulary.

    Models often have a few ids more than their tokenizer, for nothing but even
    shapes; never fewer, nor twice as many.

    Args:
      vocab_size: Ids of the model.

    Raises:
      ValueError: If this cannot be its tokenizer.
    """
    size = check_whole("vocab_size", vocab_size)
    if not self.vocab_size <= size < 2 * self.vocab_size:
      raise ValueError(
        f"tokenizer knows {self.vocab_size} ids and the model {brief(size)}; "
        "they do not belong together."
      )

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, with what the tokenizer puts around it.

    Args:
      text: Any text.

    Returns:
      Int32. [t]

    Raises:
      ValueError: If it is no text, or holds half of a character.
    """
    if not isinstance(text, str):
      raise ValueError(f"text is {brief(text)}; it must be a string.")
    check_characters("text", text)
    return np.array(self._tokenizer.encode(text).ids, np.int32)

  def encode_chat(
    self, messages: Sequence[Message], /, **variables: Any
  ) -> ChatPrompt:
    """The ids of a conversation, up to where the next answer begins.

    Args:
      messages: So far.
      **variables: What else the template reads.

    Raises:
      ValueError: If they are no messages, the template refuses them, or they
        hold half of a character.
    """
    checked = checked_messages(messages)
    variables = checked_variables("template", variables)
    template = self.template
    if variables.get("tools") is not None:
      template = self._templates.get("tool_use", template)
    text = template.render(checked, **variables)
    check_characters("the conversation", text)
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    ends = [end for _, end in encoding.offsets]
    starts = _starts(template, checked, text, variables)
    # Ids that reach over the end of a message are not of the message alone.
    counts = {bisect.bisect_right(ends, size) for size in starts}
    ids = np.array(encoding.ids, np.int32)
    return ChatPrompt(ids, tuple(sorted(counts - {0})))

  def decode(self, ids: list[int]) -> str:
    """The text of ids, without special tokens.

    Raises:
      ValueError: If they are no ids.
    """
    try:
      return self._tokenizer.decode(ids, skip_special_tokens=True)
    except (TypeError, OverflowError):
      pass
    raise ValueError(f"ids is {brief(ids)}; it must be a list of ids.")

  def is_silent(self, token: int) -> bool:
    """Whether an id has no text at all: a special token, or an unknown id."""
    return self._piece(token) is None or operator.index(token) in self._special

  def is_byte(self, token: int) -> bool:
    """Whether an id is one byte of a run that is decoded as a whole."""
    if not self._falls_back:
      return False
    return _BYTE.fullmatch(self.name_of(token)) is not None

  def name_of(self, token: int) -> str:
    """What the tokenizer itself calls an id; empty for an unknown one."""
    return self._piece(token) or ""

  def _piece(self, token: int) -> str | None:
    """What the tokenizer calls an id; None for an unknown one.

    Raises:
      ValueError: If it is no id.
    """
    try:
      return self._tokenizer.id_to_token(token)
    except (TypeError, OverflowError):
      pass
    raise ValueError(f"token is {brief(token)}; it must be an id.")

  def bytes_of(self, token: int) -> bytes | None:
    """The bytes that an id stands for, which need not be whole characters.

    Returns:
      None where the tokenizer does not tell, or the id has no text.
    """
    name = self.name_of(token)
    if self.is_silent(token) or operator.index(token) in self._added:
      return None
    if self._is_byte_level:
      known = all(character in _CODES for character in name)
      return bytes(_CODES[x] for x in name) if known else None
    return bytes([int(name[3:5], 16)]) if self.is_byte(token) else None


def _checked_tokens(tokens: Any) -> dict[str, str]:
  """Special tokens by their names; those that are None are none."""
  given = {} if tokens is None else tokens
  if not isinstance(given, Mapping) or not all(
    isinstance(text, str | None) for text in given.values()
  ):
    raise ValueError(
      f"special_tokens is {brief(tokens)}; it must map names to texts."
    )
  texts = {name: text for name, text in given.items() if text is not None}
  for text in texts.values():
    check_characters("special_tokens", text)
  return texts


def _checked_ends(ends: Any) -> frozenset[int]:
  """The ids that end a text."""
  ids = listed(ends)
  if ids is None:
    raise ValueError(f"end_ids is {brief(ends)}; it must be a list of ids.")
  return frozenset(check_whole("end_ids: an id", one) for one in ids)


def _shared(text: str, start: str) -> int:
  """Characters that two texts begin with alike."""
  if text.startswith(start):
    return len(start)
  pairs = zip(text, start, strict=False)
  differs = (index for index, (x, y) in enumerate(pairs) if x != y)
  return next(differs, min(len(text), len(start)))


def _starts(
  template: ChatTemplate,
  messages: Sequence[Message],
  text: str,
  variables: dict[str, Any],
) -> list[int]:
  """Characters up to the end of each message, where the text has it so.

  A template may refuse the start of a conversation, or write it in another
  way once more follows. Whatever it puts in place of a generation prompt, the
  whole conversation ends where that begins.
  """
  found, size = [], len(messages)
  first = range(1, min(size, _FIRST_ENDS) + 1)
  last = range(max(1, size - _LAST_ENDS + 1), size + 1)
  for count in sorted({*first, *last}):
    try:
      start = template.render(
        messages[:count], generation_prompt=False, **variables
      )
    except ValueError:
      continue
    shared = _shared(text, start)
    if shared == len(start) or count == size:
      found.append(shared)
  return found


def _byte_codes() -> dict[str, int]:
  """The byte that each character of a byte-level piece stands for.

  Bytes that print are themselves; the others are what follows 255, in order.
  """
  prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [code for code in range(256) if code not in prints]
  codes = {chr(code): code for code in prints}
  return codes | {chr(256 + i): code for i, code in enumerate(others)}


_CODES = _byte_codes()


def _decoder_types(tokenizer: Any) -> set[str]:
  """The kinds of steps that its decoder takes."""
  state = tokenizer.decoder and tokenizer.decoder.__getstate__()
  decoder = json.loads(state) if state else {}
  steps = [decoder, *decoder.get("decoders", [])]
  return {step.get("type", "") for step in steps}
