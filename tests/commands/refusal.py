"""What a refusal looks like."""


def refused(result):
  """The one sentence of a refusal."""
  status, out, err = result
  lines = [line for line in err.splitlines() if line]
  assert status == 2 and not out and len(lines) == 1
  assert lines[0].startswith("sparse_prefix_jax: ")
  return lines[0]
