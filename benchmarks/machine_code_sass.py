"""Counts in the machine code of one kernel, as the disassembler prints it.

An instruction of the text may have control words, an address and a predicate
around it; a label stands on a line of its own:

    .L_x_8:
       -:-:0:Y:02  /*14a0*/  @P0 SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR9], R24

What a kernel does over and over is its main loop: of the innermost loops the
one with the most products, and of equals the longest. Loops in which a thread
only waits for a barrier are none; the compiler moves them behind the kernel.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LABEL = re.compile(r"^\s*\.(L_x_\d+):")
_INSTRUCTION = re.compile(
  r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;\n]*)"
)
_TARGET = re.compile(r"\.(L_x_\d+)")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")

_KINDS: Mapping[str, str] = {
  "waits": r"WARPGROUP\.DEPBAR",
  "barriers": r"BAR\.",
  "shared": r"LDSM?\b|STSM?\b",
  "products": r"HGMMA\b",
  "copies": r"UTMALDG|UTMASTG|UBLKCP",
  "local": r"LDL\b|STL\b",
}
"""What is counted, by the beginning of its instructions: waits for products,
barriers of warps, accesses to shared memory, products of a warpgroup, bulk
copies, and accesses to local memory, which is where registers are spilled."""

COUNTS = ("instructions", "registers", "spilled_bytes", *_KINDS, "loop")
"""The names of all counts; `loop` is the instructions of the main loop."""

_LEAST_LOOP = 16
"""Instructions of a loop that does more than wait."""


class _Instruction(NamedTuple):
  """One instruction.

  Attributes:
    opcode: With its modifiers.
    target: The label that it branches to, or None.
  """

  opcode: str
  target: str | None


def counts(text: str, report: str) -> dict[str, int]:
  """Counts what there is of each kind in a kernel.

  Args:
    text: The disassembled kernel.
    report: What the assembler said of it (`-v`): registers and spills.

  Returns:
    A number for each of `COUNTS`; `loop` is 0 where there is none.

  Raises:
    ValueError: A text without instructions, or a report without registers.
  """
  code, labels = _parsed(text)
  registers = _REGISTERS.search(report)
  if not code or registers is None:
    raise ValueError("no instructions, or no registers, were told of a kernel")
  found = {
    name: sum(re.match(pattern, x.opcode) is not None for x in code)
    for name, pattern in _KINDS.items()
  }
  return {
    "instructions": len(code),
    "registers": int(registers[1]),
    "spilled_bytes": sum(map(int, _SPILLS.findall(_properties(report)))),
    **found,
    "loop": _main_loop(code, labels),
  }


def _properties(report: str) -> str:
  """The lines of a report that do not repeat others as a warning."""
  return "\n".join(x for x in report.splitlines() if "warning" not in x)


def _parsed(text: str) -> tuple[list[_Instruction], dict[str, int]]:
  """The instructions, and of each label the number of the one behind it."""
  code: list[_Instruction] = []
  labels = {}
  for line in text.splitlines():
    label, found = _LABEL.match(line), _INSTRUCTION.search(line)
    if label is not None:
      labels[label[1]] = len(code)
    elif found is not None and found[1] != "NOP":
      target = _TARGET.search(found[2]) if found[1].startswith("BRA") else None
      code.append(_Instruction(found[1], target and target[1]))
  return code, labels


def _main_loop(code: Sequence[_Instruction], labels: Mapping[str, int]) -> int:
  """The instructions of the main loop, 0 if there is none."""
  back = []
  for index, instruction in enumerate(code):
    start = labels.get(instruction.target or "", len(code))
    if start <= index:
      back.append((start, index + 1))
  waiting = {stop for start, stop in back if stop - start < _LEAST_LOOP}
  # Behind such a loop stands the branch back to where its barrier was met.
  loops = {
    (start, stop)
    for start, stop in back
    if stop not in waiting and stop - 1 not in waiting
  }
  innermost = [
    (start, stop)
    for start, stop in loops
    if not any(
      start <= a and b <= stop and (a, b) != (start, stop) for a, b in loops
    )
  ]

  def products(loop: tuple[int, int]) -> int:
    return sum(x.opcode.startswith("HGMMA") for x in code[slice(*loop)])

  best = max(innermost, key=lambda x: (products(x), x[1] - x[0]), default=None)
  return 0 if best is None else best[1] - best[0]
