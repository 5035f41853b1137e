"""What a client asks for: a JSON body, checked field by field.

Every body that cannot be meant is refused with one sentence that names the
field. What would change the answer and is not done here is refused too; what
changes nothing is passed over.
"""

import dataclasses
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, TypeAlias

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.text.stop_strings import checked_stops
from sparse_prefix_jax.serving.text.template import (
  Message,
  check_characters,
  checked_messages,
  checked_variables,
)


class Conversation(NamedTuple):
  """The messages of a conversation.

  Attributes:
    messages: Each has a role and a text as its content.
    variables: What else the chat template reads, such as enable_thinking.
  """

  messages: list[Message]
  variables: Mapping[str, Any] = MappingProxyType({})


AskedPrompt: TypeAlias = str | list[int] | Conversation
"""A text, its ids, or a conversation."""

MOST_SAMPLES = 16
"""How many samples of how many prompts a call may ask for."""
_MOST_BEST = 20
_BOTH = {"model", "n", "stop", "stream", "stream_options", "max_tokens"}
_OF_CHATS = {
  *("messages", "chat_template_kwargs"),
  *("max_completion_tokens", "logprobs", "top_logprobs"),
}
_SAMPLING = {
  *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
  *("presence_penalty", "frequency_penalty", "repetition_penalty"),
}
_WHOLE = ("top_k", "seed")
# They change no answer: who asks, and what somebody else bills or stores.
_SILENT = {
  *("user", "metadata", "service_tier", "safety_identifier"),
  *("prompt_cache_key", "prompt_cache_retention"),
}
# Values that ask for nothing.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
  "echo": (False,),
  "best_of": (1,),
  "suffix": ("",),
  "store": (False,),
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "parallel_tool_calls": (True, False),
  "modalities": (["text"],),
  "response_format": ({"type": "text"},),
  "functions": ([],),
  "function_call": ("none", "auto"),
}
# What JSON calls the types of Python.
_KINDS = {
  bool: "true or false",
  dict: "an object",
  float: "a number",
  int: "a number",
  list: "an array",
  str: "a text",
  type(None): "null",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """A checked body of `/v1/completions` or `/v1/chat/completions`.

  Attributes:
    prompts: At least one; a conversation is always alone.
    chat: Whether it is a conversation.
    sampling: How ids are drawn; the seed is drawn where none was given.
    max_tokens: Most ids of a sample; None for what there is room for.
    samples: Of each prompt.
    stops: Strings before which an answer ends.
    stream: Whether pieces are sent as they come.
    usage: Whether a stream ends with the number of tokens.
    best: Most probable ids at each position to tell; None for no log
      probabilities at all.
  """

  prompts: tuple[AskedPrompt, ...]
  chat: bool
  sampling: Sampling
  max_tokens: int | None
  samples: int
  stops: tuple[str, ...]
  stream: bool
  usage: bool
  best: int | None


def read_call(content: bytes, model: str, *, chat: bool | None) -> Call:
  """Reads the body of a request.

  Args:
    content: JSON.
    model: The name of the only model.
    chat: Whether it must be a conversation; None for either.

  Raises:
    ValueError: One sentence on what is wrong with it.

  Example:
    >>> read_call(b'{"model": "m", "prompt": "Hi", "top_k": 4}', "m", chat=False
    ... ).sampling.top_k
    4
    >>> read_call(b'{"model": "x", "prompt": "Hi"}', "m", chat=False)
    Traceback (most recent call last):
    ValueError: model is 'x'; the only one here is 'm'.
  """
  body = _read_object(content)
  chat = "messages" in body if chat is None else chat
  known = _BOTH | _SAMPLING | (_OF_CHATS if chat else {"prompt", "logprobs"})
  _refuse_others(body, known)
  if body.get("model") not in (None, model):
    raise _error(body, "model", f"the only one here is {model!r}")
  best = (
    _best_of_chat(body) if chat else _count(body, "logprobs", 0, _MOST_BEST)
  )
  options = _field(body, "stream_options", dict, {})
  _refuse_others(options, {"include_usage", "include_obfuscation"})
  prompts = (_conversation(body),) if chat else _prompts(body)
  samples = _count(body, "n", 1, MOST_SAMPLES) or 1
  if samples * len(prompts) > MOST_SAMPLES:
    raise ValueError(
      f"n is {samples} for {len(prompts)} prompts; a call has at most "
      f"{MOST_SAMPLES} answers."
    )
  return Call(
    prompts=prompts,
    chat=chat,
    sampling=_sampling(body, best or 0),
    max_tokens=_most_tokens(body),
    samples=samples,
    stops=_stops(body),
    stream=bool(_field(body, "stream", bool, False)),
    usage=bool(_field(options, "include_usage", bool, False)),
    best=best,
  )


def _read_object(content: bytes) -> dict[str, Any]:
  """The object that a body is."""

  def no_number(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"it holds {name}, which JSON has not", "", 0)

  try:
    body = json.loads(content.decode("utf-8-sig"), parse_constant=no_number)
  except UnicodeDecodeError:
    raise ValueError("the body is not UTF-8.") from None
  except RecursionError:
    raise ValueError("the body is nested too deeply.") from None
  except json.JSONDecodeError as error:
    raise ValueError(f"the body is not JSON: {error}.") from None
  except ValueError:  # Python reads no more digits.
    raise ValueError("the body holds a number of too many digits.") from None
  if not isinstance(body, dict):
    raise ValueError(f"the body is {_KINDS[type(body)]}; it must be an object.")
  return body


def _refuse_others(body: Mapping[str, Any], known: set[str]) -> None:
  """Refuses fields that would be passed over and ask for something."""
  for name, value in body.items():
    if name in known or name in _SILENT or value is None:
      continue
    if value in _NEUTRAL.get(name, ()):
      continue
    raise _error(body, name, "this is not done here")


def _error(body: Mapping[str, Any], name: str, allowed: str) -> ValueError:
  """The sentence for a field."""
  value = brief(body.get(name))
  shown = name if name.isidentifier() else brief(name)
  return ValueError(f"{shown} is {value}; {allowed}.")


def _field(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
  """A field of a type; absent and null are the default."""
  value = body.get(name)
  if value is None:
    return default
  if not isinstance(value, kind):
    raise _error(body, name, f"it must be {_KINDS[kind]}")
  return value


def _count(
  body: Mapping[str, Any], name: str, least: int, most: int
) -> int | None:
  """An integer in a range, or None where it is absent or null."""
  value = body.get(name)
  if value is None:
    return None
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or not least <= value <= most:
    raise _error(body, name, f"it must be an integer from {least} to {most}")
  return value


def _best_of_chat(body: Mapping[str, Any]) -> int | None:
  """How many ids are told: a chat says whether, and then how many."""
  wanted = _field(body, "logprobs", bool, False)
  best = _count(body, "top_logprobs", 0, _MOST_BEST)
  if best and not wanted:
    raise _error(body, "top_logprobs", "logprobs must be true with it")
  return (best or 0) if wanted else None


def _most_tokens(body: Mapping[str, Any]) -> int | None:
  """The longest answer; completions are short where they do not say."""
  names = ("max_completion_tokens", "max_tokens")
  given = [_count(body, name, 1, 2**31 - 1) for name in names]
  if None not in given and given[0] != given[1]:
    raise _error(body, names[0], f"max_tokens is {given[1]}")
  found = given[0] if given[0] is not None else given[1]
  return 16 if found is None and "messages" not in body else found


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
  """The stop strings."""
  stops = checked_stops(body.get("stop"))
  for stop in stops:
    check_characters("stop", stop)
  return stops


def _sampling(body: Mapping[str, Any], best: int) -> Sampling:
  """How ids are drawn; without a temperature it is 1, as everywhere."""
  given: dict[str, Any] = {"temperature": 1.0}
  for name in sorted(
    _SAMPLING & {key for key, x in body.items() if x is not None}
  ):
    value = body[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "logit_bias":
      given[name] = _bias(body, value)
    elif name in _WHOLE:
      if not whole:
        raise _error(body, name, "it must be an integer")
      given[name] = value
    elif whole or isinstance(value, float):
      given[name] = _as_float(value)
    else:
      raise _error(body, name, "it must be a number")
  # Any integer will do, negative ones too; who names none gets another answer
  # each time, where ids are drawn at all.
  if "seed" not in given and given["temperature"]:
    given["seed"] = secrets.randbits(32)
  given["seed"] = given.get("seed", 0) % 2**32
  return Sampling(**given, best=best)


def _as_float(value: int | float) -> float:
  """A number as a float; what is too large is infinite, and refused so."""
  try:
    return float(value)
  except OverflowError:
    return math.inf


def _bias(body: Mapping[str, Any], bias: Any) -> dict[int, float]:
  """Ids are keys, and so texts, in JSON."""
  if not isinstance(bias, dict) or not all(
    key.isascii() and key.isdigit() and len(key) < 12 for key in bias
  ):
    raise _error(body, "logit_bias", "it must map ids to numbers")
  numbers = all(type(value) in (int, float) for value in bias.values())
  if not numbers:
    raise _error(body, "logit_bias", "it must map ids to numbers")
  return {int(key): _as_float(value) for key, value in bias.items()}


def _prompts(body: Mapping[str, Any]) -> tuple[AskedPrompt, ...]:
  """The prompts of a completion: one or several, texts or ids."""
  prompt = body.get("prompt")
  many: list[Any] = prompt if isinstance(prompt, list) else [prompt]
  if isinstance(prompt, list) and all(map(_is_id, prompt)):
    many = [prompt]
  if not many or not all(map(_is_prompt, many)):
    raise _error(
      body, "prompt", "it must be a text, a list of ids, or a list of such"
    )
  if len(many) > MOST_SAMPLES:
    raise ValueError(
      f"prompt holds {len(many)} prompts; a call has at most {MOST_SAMPLES}."
    )
  for one in many:
    if isinstance(one, str):
      check_characters("prompt", one)
  return tuple(many)


def _is_prompt(value: Any) -> bool:
  return isinstance(value, str) or (
    isinstance(value, list) and len(value) > 0 and all(map(_is_id, value))
  )


def _is_id(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _conversation(body: Mapping[str, Any]) -> Conversation:
  """The messages of a conversation; texts in parts are joined."""
  messages = checked_messages(body.get("messages"))
  for index, message in enumerate(messages):
    for name in ("role", "content"):
      check_characters(f"messages[{index}]", message.get(name) or "")
  variables = checked_variables(
    "chat_template_kwargs", body.get("chat_template_kwargs")
  )
  return Conversation(list(map(_with_arguments, messages)), variables)


def _with_arguments(message: Message) -> Message:
  """A message whose calls of tools have mappings as arguments.

  Here they are JSON in a text, and chat templates read mappings.
  """
  calls = message.get("tool_calls")
  if not isinstance(calls, list):
    return message
  return {**message, "tool_calls": list(map(_parsed_call, calls))}


def _parsed_call(call: Any) -> Any:
  """A call of a tool; what is no text, or no object, stays as it is."""
  function = call.get("function") if isinstance(call, dict) else None
  if not isinstance(function, dict):
    return call
  try:
    arguments = json.loads(function["arguments"])
  except (KeyError, TypeError, ValueError, RecursionError):
    return call
  if not isinstance(arguments, dict):
    return call
  return {**call, "function": {**function, "arguments": arguments}}
