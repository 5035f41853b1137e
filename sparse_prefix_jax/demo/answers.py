"""Some questions with their answers, and the controls, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_prefix_jax.demo.stream import Stream

_SHOWN = 5


def told(
  stream: Stream, given: Sequence[int], controls: Mapping[str, Any]
) -> str:
  """What the model was asked and answered, and what it is without states.

  Args:
    stream: Questions with answers.
    given: The id that the model answered to each.
    controls: What `measure_controls` returns.

  Returns:
    Lines without trailing spaces.
  """
  decode, lines = stream.tokenizer.decode, []
  for prompt, shared, answer, own in list(
    zip(stream.prompts, stream.shared, stream.answers or [], given)
  )[:_SHOWN]:
    question = decode(prompt[shared:].tolist())
    verdict = "right" if own == answer else f"it is {decode([answer])}"
    lines.append(
      f"  after {shared:,} tokens: {question} -> {decode([own])} ({verdict})"
    )
  return "\n".join(
    [
      "Some answers:",
      *lines,
      f"Right from restored states {controls['restored']:.1%}; with states of"
      f" zeros {controls['zeros']:.1%}, of another document"
      f" {controls['another_document']:.1%}.",
    ]
  )
