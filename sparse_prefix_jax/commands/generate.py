"""`generate`: a text goes on, or a conversation in the terminal."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from sparse_prefix_jax import extras

from .printing import say, sentence_of, tell
from .served_model import open_served_model

_CAPACITY = "256MiB"
_MOST = 256
# The answers of the demo's model are single words.
_MOST_OF_DEMO = 1
# One rung fits models of any width, and turns are short.
_LADDER = (1,)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


def generate_command(values: flags.FlagValues) -> None:
  """Continues `--prompt`, or answers the lines of stdin one by one.

  What was restored and what was computed is told on stderr after every answer,
  so that stdout holds the text alone.

  Args:
    values: the flags of the command.

  Raises:
    ValueError: a flag is out of its range, an extra is not installed, or model
      and tokenizer do not belong together.
    OSError: the model cannot be read.
  """
  sampling = importlib.import_module("sparse_prefix_jax.serving.sampling")
  fields = {name: values[name].value for name in _SAMPLING}
  asked = sampling.Sampling(
    **{name: value for name, value in fields.items() if value is not None}
  )
  if values.prompt is not None and values.system is not None:
    raise ValueError("--system is for a conversation, not for a --prompt")
  for package in ("jinja2", "tokenizers"):
    extras.optional(package, "text")
  engine = _engine(values)
  most = values.max_tokens
  if most is None:
    most = _MOST if values.model else _MOST_OF_DEMO
  options = {"sampling": asked, "max_tokens": most, "stop": values.stop}
  if values.prompt is not None:
    _answer(engine, values.prompt, options)
    return
  _converse(engine, values.system, options)


def _engine(values: flags.FlagValues) -> Any:
  """The model that is named, or that of the demo, with its tokenizer."""
  served = open_served_model(values, ladder=_LADDER)
  cache = importlib.import_module("sparse_prefix_jax.cache").PrefixCache(
    served.model, capacity=values.capacity or _CAPACITY
  )
  engine = importlib.import_module("sparse_prefix_jax.serving.engine")
  return engine.Engine(served.model, cache, served.tokenizer)


def _converse(engine: Any, system: str | None, options: dict[str, Any]) -> None:
  """Answers message after message, all of them one conversation.

  Where one types, a message that cannot be meant is told of and asked again,
  and Ctrl-C ends an answer: what was said of it stays said.
  """
  typed = sys.stdin.isatty()
  messages = []
  if system is not None:
    messages.append({"role": "system", "content": system})
  for line in _lines(typed=typed):
    messages.append({"role": "user", "content": line})
    try:
      text = _answer(engine, messages, options, typed=typed)
    except ValueError as error:
      if not typed:
        raise
      tell(sentence_of(error))
      text = ""
    if text or not typed:
      messages.append({"role": "assistant", "content": text})
    else:
      messages.pop()


def _lines(*, typed: bool) -> Iterator[str]:
  """The lines of stdin that are not empty, with a mark where one types."""
  while True:
    if typed:
      say("> ", end="", stream=sys.stderr)
    line = sys.stdin.readline()
    if not line:
      break
    if line.strip():
      yield line.strip()
  if typed:
    say("", stream=sys.stderr)  # What comes next begins a line of its own.


def _answer(
  engine: Any, prompt: Any, options: dict[str, Any], *, typed: bool = False
) -> str:
  """Prints an answer as it comes, and what it took.

  Args:
    engine: answers.
    prompt: a text, or a conversation.
    options: of the answer.
    typed: whether Ctrl-C ends the answer and nothing else.

  Returns:
    Its text.
  """
  text, count, last = "", 0, None
  ends_an_answer = (KeyboardInterrupt,) if typed else ()
  ends = contextlib.suppress(*ends_an_answer)
  with ends, contextlib.closing(engine.stream(prompt, **options)) as deltas:
    for last in deltas:
      say(last.text, end="")
      text, count = text + last.text, count + len(last.ids)
  say("")
  if last is not None and sys.stderr is not None:
    say(
      f"[{last.restored} tokens restored, {last.computed} computed, {count}"
      " decoded]",
      stream=sys.stderr,
    )
  return text
