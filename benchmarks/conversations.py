"""What a prompt's states cost a conversation that simply goes on.

    python -m benchmarks.conversations [--output=FILE.json]

Open conversations take turns under few slots. A prompt's own state is of use
when an answer is regenerated or a message edited, and of none when the
conversation goes on from its end; it is on probation until it is hit. Compared,
on the same stream, with a store that drops it as soon as the answer is stored.
"""

from absl import app, flags

from benchmarks import command_line
from benchmarks.conversation_turns import compare
from benchmarks.record import write_result

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result.")


def main(argv: list[str]) -> None:
  """Compares, prints, and keeps the result where it was asked for."""
  with command_line.one_sentence(argv):
    command_line.writable(_OUTPUT)
  rows = compare()
  for row in rows:
    lost = row["saved_by_the_end_only"] - row["saved"]
    print(
      f"{row['eviction']:5s} {row['slots']:3d} slots, "
      f"{row['regenerated']:4.0%} regenerated: saved {row['saved']:.4f}, "
      f"end only {row['saved_by_the_end_only']:.4f}, lost {lost:+.4f}"
    )
  if _OUTPUT.value:
    write_result(_OUTPUT.value, {"rows": rows})


if __name__ == "__main__":
  app.run(main)
