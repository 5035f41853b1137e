"""What counts in machine code may be: the kept ones, and limits.

See `machine_code.py`. A count is a number, and fewer is better, of all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.machine_code_sass import COUNTS

RECURRENT_STEPS = (
  *("gated_delta_rule_step", "gated_delta_rule_projected_step"),
  "kimi_delta_attention_step",
  *("linear_attention_step", "mamba_2_step"),
  *("diagonal_scan_step", "selective_scan_step", "causal_conv1d_step"),
)
"""Steps of one token whose states should be read once and written once."""

PROGRAM_COUNTS = (
  *("kernels", "own_kernels", "kernels_in_loops"),
  *("state_passes", "others_per_layer", "launches", "copies", "other_sums"),
)
"""What is counted of a program: the kernels that it launches, how many of them
are ours or in a loop, how often the states of all rows are read or written, and
in a layer group, per layer, what is no wide product, norm, activation of SwiGLU
or residual; and of a prefill how many kernels run, loops and all, how many of
them copy, and how many sums programs of fewer chunks have that this one has
not."""

LIMITS: Mapping[str, Mapping[str, int]] = {
  **{x: {"kernels": 1, "state_passes": 2} for x in RECURRENT_STEPS},
  "lattice_attention_step": {"own_kernels": 2, "kernels_in_loops": 0},
  "latent_attention_step": {"own_kernels": 2, "kernels_in_loops": 0},
  "layer_group_decode": {
    "kernels": 64,
    "kernels_in_loops": 0,
    "others_per_layer": 5,
  },
  "layer_group_prefill": {
    "kernels_in_loops": 0,
    "copies": 0,
    "other_sums": 0,
  },
}
"""The most of each count that a program of an operation may have."""

MOST_PER_PAGE: Mapping[int, int] = {128: 699}
"""Instructions of the main loop of attention, by the width of its heads."""

SPILLING: Mapping[str, Sequence[int]] = {
  "gated_delta_rule": (256,),
  "linear_attention": (256,),
  "kimi_delta_attention": (64, 128, 256),
  "kimi_linear_prefill": (576,),  # its heads of 128, of that operation
}
"""Operations and widths that may spill registers. Those of no other may. A
device has run each of these: bits and errors are those of the others."""


def is_counted(program: str) -> bool:
  """Whether the kernels of a program are counted; none takes long chunks."""
  return not (program.startswith("model_") or program.endswith("_long"))


def above(
  results: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Says which counts are above those that are kept, or above a limit.

  Args:
    results: Of programs: `operation`, `width`, `program` and `kernels`.
    kept: The same, as they were.

  Returns:
    A sentence for each count; none if all is well.
  """
  before = {(x["operation"], x["width"]): x for x in kept}
  told = []
  for result in results:
    name = f"{result['operation']} {result['width']}"
    if "error" in result:
      told.append(f"{name} does not compile: {result['error']}")
      continue
    known = before.get((result["operation"], result["width"]))
    if known is None:
      told.append(f"{name} has no counts that are kept")
    else:
      told += [f"{name}: {x}" for x in _raised(result, known)]
    told += [f"{name}: {x}" for x in _over(result)]
  return told


def _raised(
  result: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[str]:
  """Says which counts of a program are above the kept ones, or not there."""
  yield from _compared("the program", result["program"], known["program"])
  ours, before = (x["program"].get("own_kernels", 0) for x in (result, known))
  if ours < before:
    yield f"the program has {ours} kernels of ours, and {before} are kept"
  for kernel in sorted({*result["kernels"]} ^ {*known["kernels"]}):
    where = "is new" if kernel in result["kernels"] else "is gone"
    yield f"{kernel} {where}"
  for kernel, counts in result["kernels"].items():
    yield from _compared(kernel, counts, known["kernels"].get(kernel, {}))


def _compared(
  what: str, counts: Mapping[str, int], most: Mapping[str, int]
) -> Iterator[str]:
  for name, count in counts.items():
    if count > most.get(name, count):
      yield f"{what} has {name} {count}, and {most[name]} are kept"


def _over(result: Mapping[str, Any]) -> Iterator[str]:
  """Says which counts of a program are above a limit."""
  operation, width = result["operation"], result["width"]
  for name, most in LIMITS.get(operation, {}).items():
    if result["program"][name] > most:
      yield f"{name} is {result['program'][name]}, and the limit is {most}"
  for kernel, counts in result["kernels"].items():
    spilled = counts["spilled_bytes"]
    if spilled and width not in SPILLING.get(operation, ()):
      yield f"{kernel} spills {spilled} bytes, and the limit is 0"
    loop = counts["loop"]
    most = MOST_PER_PAGE.get(width, loop)
    if operation == "lattice_attention" and loop > most:
      yield f"a page takes {loop} instructions, and the limit is {most}"


def table_of_kernels(results: Sequence[Mapping[str, Any]]) -> list[str]:
  """The counts of all kernels, as lines of a table in Markdown."""
  rows = [
    (result, kernel, counts)
    for result in results
    for kernel, counts in result.get("kernels", {}).items()
  ]
  lines = [
    [x["operation"], str(x["width"] or ""), kernel, *_told(counts, COUNTS)]
    for x, kernel, counts in rows
  ]
  return _table(["operation", "width", "kernel", *COUNTS], lines)


def table_of_programs(results: Sequence[Mapping[str, Any]]) -> list[str]:
  """What steps of one token launch, as lines of a table in Markdown.

  A program that did not compile has its reason in place of counts.
  """
  lines = []
  for result in results:
    if result["operation"] in LIMITS or "error" in result:
      counts = result.get("program", {"kernels": result.get("error")})
      numbers = _told(counts, PROGRAM_COUNTS)
      lines.append([result["operation"], str(result["width"] or ""), *numbers])
  return _table(
    ["step of 16 rows, prefill of 16 chunks", "width", *PROGRAM_COUNTS], lines
  )


def _told(counts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
  """Counts of these names as text, empty where there is none."""
  found = (counts.get(name, "") for name in names)
  return [f"{x:,}" if isinstance(x, int) else str(x) for x in found]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
  header = [name.replace("_", " ") for name in header]
  return [
    "| " + " | ".join(line) + " |"
    for line in (header, ["---"] * len(header), *lines)
  ]
