"""Results of products that a kernel reads before it has waited for them.

A product of a warpgroup (wgmma) runs beside the program, and its accumulator
holds anything until a wait. The order of the two is that of the text alone: no
data goes from the wait to what reads, so a compiler could move arithmetic above
it. Neither an interpreter nor a small test would show that, so the text that
goes to the assembler (PTX) is looked at.
"""

import re

_PRODUCT = re.compile(r"wgmma\.mma_async\S*\s+\{([^}]*)\}")
_COMMIT = re.compile(r"wgmma\.commit_group")
_WAIT = re.compile(r"wgmma\.wait_group\S*\s+(\d+)")
_REGISTER = re.compile(r"%\w+")
_JUMP = re.compile(r"^\s*(?:@!?%\w+\s+)?(?:bra|ret|exit)\b|^\s*\$?\w+:")


def unwaited(text: str) -> list[str]:
  """Finds what touches an accumulator before the wait for its products.

  Products may add to one accumulator one behind the other; nothing else may
  read or write it until a wait leaves no more groups under way than began
  after. A label or a branch with products under way is told as well: what
  happens on the other side of it is not followed; and so is a product whose
  accumulators cannot be read.

  Args:
    text: PTX of a kernel.

  Returns:
    These lines, stripped; none if all is well.
  """
  told: list[str] = []
  # Accumulators by group, the oldest first; the last is not committed yet.
  groups: list[set[str]] = [set()]
  for line in text.splitlines():
    code = line.partition("//")[0]
    product, waited = _PRODUCT.search(code), _WAIT.search(code)
    if product is not None:
      groups[-1] |= {*_REGISTER.findall(product[1])}
    elif "wgmma.mma_async" in code:
      told.append(line.strip())  # Of a form whose accumulators are not known.
    elif _COMMIT.search(code):
      groups.append(set())
    elif waited is not None:
      ended = max(len(groups) - 1 - int(waited[1]), 0)
      groups = groups[ended:]
    elif _touches(code, set().union(*groups)):
      told.append(line.strip())
  return told


def _touches(code: str, pending: set[str]) -> bool:
  """Whether a line reads, writes or leaves behind what is not there yet."""
  if not pending:
    return False
  jumps = _JUMP.match(code) is not None
  return jumps or not pending.isdisjoint(_REGISTER.findall(code))
