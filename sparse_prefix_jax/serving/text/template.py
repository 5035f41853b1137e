"""Chat templates: messages to the text of a prompt, by Jinja in a sandbox.

They are what tokenizer_config.json and chat_template.jinja hold, and see what
they see in transformers: `messages` without what is None, their thinking under
each of its names, `add_generation_prompt`, the special tokens,
`raise_exception`, `strftime_now`, `tojson` without escapes of HTML, `break` and
`continue`, and `generation` blocks.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from sparse_prefix_jax import extras
from sparse_prefix_jax.kinds import brief

Message: TypeAlias = Mapping[str, Any]
"""One message: "role", "content", and what else a template reads."""

_THINKING = ("reasoning_content", "thinking", "reasoning")
# What `ChatTemplate.render` gives a template itself.
_OWN = ("messages", "add_generation_prompt", "generation_prompt")

PLAIN_TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
"""What stands in where a tokenizer has no template: a name before each text."""


class ChatTemplate:
  r"""A compiled template.

  Attributes:
    source: Its text.

  Example:
    >>> template = ChatTemplate(PLAIN_TEMPLATE)
    >>> template.render([{"role": "user", "content": "Hi."}])
    'user: Hi.\nassistant:'
  """

  def __init__(
    self, source: str, special_tokens: Mapping[str, str] | None = None
  ) -> None:
    """Compiles it.

    Args:
      source: Jinja.
      special_tokens: Variables such as bos_token.

    Raises:
      ValueError: If it is no Jinja.
      MissingExtraError: If the package `jinja2` is not installed.
    """
    self.source = source
    self._variables = dict(special_tokens or {})
    jinja = extras.optional("jinja2", "text")
    try:
      self._template = _environment().from_string(source)
    except jinja.TemplateError as error:
      raise ValueError(f"chat template is no Jinja: {_said(error)}.") from None

  def render(
    self,
    messages: Sequence[Message],
    /,
    *,
    generation_prompt: bool = True,
    **variables: Any,
  ) -> str:
    """Writes the text of a prompt.

    Args:
      messages: Of `checked_messages`.
      generation_prompt: Whether to add what comes before the next answer.
      **variables: What else the template reads, such as tools.

    Returns:
      The text, special tokens spelled out.

    Raises:
      ValueError: If the template refuses the messages, or fails.
    """
    given = {"tools": None, "documents": None, **self._variables, **variables}
    try:
      return self._template.render(
        messages=[dict(message) for message in messages],
        add_generation_prompt=generation_prompt,
        **given,
      )
    # Whatever a stranger's template runs into is a fault of the template.
    except Exception as error:
      raise ValueError(
        f"chat template refuses the messages: {_said(error)}."
      ) from None


def checked_templates(template: Any) -> dict[str, str]:
  """The sources of templates by their names, of which one is "default".

  Args:
    template: One, several by their names, or None for the plain one.

  Raises:
    ValueError: If it is something else, or none is the default.

  Example:
    >>> checked_templates("Hi.")
    {'default': 'Hi.'}
  """
  named: Any = template
  if not isinstance(template, Mapping):
    none = template is None or (isinstance(template, str) and not template)
    named = {"default": PLAIN_TEMPLATE if none else template}
  if not all(isinstance(source, str) for source in named.values()):
    raise ValueError(
      f"chat_template is {brief(template)}; it must be a text, or texts "
      "by their names."
    )
  if "default" not in named:
    raise ValueError(
      f"chat_template has the names {sorted(map(str, named))}; one must be "
      '"default".'
    )
  return dict(named)


def checked_messages(messages: Any) -> list[Message]:
  """The messages of a conversation, contents as texts.

  What clients send as None, a template finds missing. Templates differ in the
  name of an answer's thinking; it is under the one that was given, and under
  "reasoning_content" and "thinking".

  Args:
    messages: Each a mapping with "role" and "content"; a content may be a list
      of parts of type "text".

  Raises:
    ValueError: If there are none, or one is something else.

  Example:
    >>> checked_messages([{"role": "user", "content": [
    ...   {"type": "text", "text": "Hi."}]}])
    [{'role': 'user', 'content': 'Hi.'}]
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
    raise ValueError(
      f"messages is {brief(messages)}; it must be a list of messages."
    )
  if not messages:
    raise ValueError("messages is empty; a conversation has at least one.")
  return [_checked(index, message) for index, message in enumerate(messages)]


def _checked(index: int, message: Any) -> Message:
  """One message, its content a text."""
  if not isinstance(message, Mapping) or not isinstance(
    message.get("role"), str
  ):
    raise ValueError(
      f"messages[{index}] is {brief(message)}; it must have a role and "
      "a content."
    )
  content = message.get("content")
  if isinstance(content, list):
    content = "".join(_text_of(index, part) for part in content)
  # Whoever calls tools says nothing, and templates read it as no content.
  silent = content is None and message.get("tool_calls")
  if not isinstance(content, str) and not silent:
    raise ValueError(
      f"messages[{index}] has the content {brief(content)}; it must be a text."
    )
  told = {**message, "content": content}
  told = {name: value for name, value in told.items() if value is not None}
  thinking = next((told[name] for name in _THINKING if name in told), None)
  if thinking is None:
    return told
  return {"thinking": thinking, **told, "reasoning_content": thinking}


def _text_of(index: int, part: Any) -> str:
  """The text of a part of a content."""
  text = part.get("text") if isinstance(part, Mapping) else None
  if not isinstance(text, str) or part.get("type", "text") != "text":
    raise ValueError(
      f"messages[{index}] has the part {brief(part)}; parts must be of "
      "type text."
    )
  return text


def checked_variables(name: str, variables: Any) -> dict[str, Any]:
  """What a template reads besides the messages.

  Args:
    name: Of the argument.
    variables: By their names; None for nothing.

  Raises:
    ValueError: If it is no mapping of names, or names what a template gets
      anyway.

  Example:
    >>> checked_variables("template", {"enable_thinking": False})
    {'enable_thinking': False}
  """
  given = {} if variables is None else variables
  if not isinstance(given, Mapping) or not all(
    isinstance(key, str) for key in given
  ):
    raise ValueError(
      f"{name} is {brief(variables)}; it must map names to what the "
      "template reads by them."
    )
  for own in _OWN:
    if own in given:
      raise ValueError(f"{name} names {own}, which no caller chooses.")
  return dict(given)


def check_characters(name: str, text: str) -> None:
  """Refuses half of a character, which JSON can name and no text has.

  Bytes of a terminal or a file that are not UTF-8 become such, too.

  Args:
    name: Of the text.
    text: What was given.

  Raises:
    ValueError: If it holds one.
  """
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    raise ValueError(
      f"{name} holds half of a character, or bytes that are not UTF-8."
    ) from None


@functools.cache
def _environment() -> Any:
  """The sandbox, as transformers makes it."""
  jinja = extras.optional("jinja2", "text")
  sandbox = extras.optional("jinja2.sandbox", "text")
  extension = extras.optional("jinja2.ext", "text").Extension

  class GenerationBlock(extension):
    """Blocks that mark what a model says; here they are only their content."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> Any:
      """Reads a block up to its end."""
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja.nodes.Scope(body, lineno=line)

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
  )

  def raise_exception(message: str) -> NoReturn:
    raise jinja.TemplateError(message)

  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = _now
  return environment


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """JSON as models were trained to read it: Jinja's own escapes HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _now(pattern: str) -> str:
  """The date of today, where a template tells it."""
  return datetime.datetime.now().strftime(pattern)


def _said(error: Exception) -> str:
  """What an error says, on one line without its full stop."""
  text = " ".join(str(error).split()) or type(error).__name__
  return text.rstrip(".")
