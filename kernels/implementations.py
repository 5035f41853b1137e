"""Which implementation of an operation runs: by platform, or by name."""

IMPLEMENTATIONS = ("xla",)


def choose(operation: str, implementation: str | None) -> str:
  """The implementation to run.

  Args:
    operation: For the message.
    implementation: A name of IMPLEMENTATIONS, or None for the best that fits.

  Raises:
    ValueError: For a name that this operation does not have.
  """
  if implementation is None:
    return "xla"
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation={implementation!r} of {operation} does not exist; "
      f"choose None or one of {', '.join(IMPLEMENTATIONS)}."
    )
  return implementation
