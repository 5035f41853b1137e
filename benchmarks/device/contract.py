"""The contract on this device: which layers of models break it, if any.

python -m benchmarks.device.contract --model=demo,tiny --dtype=bfloat16

An error in one model is told and does not stop the rest; the result is written
after every model, so that an end in between loses nothing.
"""

import sys

from absl import app, flags

from benchmarks import command_line
from benchmarks.device.checked_models import checked_models
from benchmarks.record import write_result

_MODEL = flags.DEFINE_list("model", ["tiny"], "Presets, one after another.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of them."
)
_LADDER = flags.DEFINE_list("ladder", ["1", "2", "4"], "Rungs, in chunks.")
_LIVES = flags.DEFINE_integer("lives", 1, "Random lives of a cache.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def main(argv: list[str]) -> None:
  """Checks, prints, and keeps the result; exits with 1 if one had an error."""
  with command_line.one_sentence(argv):
    ladder = tuple(command_line.whole_numbers(_LADDER, ascending=1))
    configs = {
      name: config.replace(dtype=_DTYPE.value, ladder=ladder)
      for name, config in command_line.models_of(_MODEL).items()
    }
    command_line.writable(_OUTPUT)
  results = []
  for result in checked_models(configs, _LIVES.value):
    results.append(result)
    for finding in result.get("findings", ()):
      print(finding)
    told = result.get("error", f"{len(result.get('findings', ()))} findings")
    print(f"{result['model']} {result['dtype']}: {told}", flush=True)
    if _OUTPUT.value:
      write_result(_OUTPUT.value, {"models": results})
  sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
  app.run(main)
