"""Counts in a disassembled kernel, on a small text made for it."""

import pytest

from benchmarks import machine_code_sass

PRODUCTS = "\n".join(
  f"      -:-:-:Y:04  /*{0x100 + 16 * i:04x}*/  "
  "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24 ;"
  for i in range(16)
)
KERNEL = f"""
        .global         example
example:
.text.example:
   -:-:-:Y:01        /*0000*/                   LDC R1, c[0x0][0x28]
   1:-:-:Y:06        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0
   -:2:-:Y:01        /*0020*/              @UP1 UTMALDG.5D [UR24], [UR6]
.L_x_0:
   -:-:0:Y:02        /*0030*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR9], R24
   0:-:-:Y:05        /*0040*/              @!P1 BRA `(.L_x_2)
.L_x_1:
{PRODUCTS}
   -:-:-:-:02        /*0200*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0
   -:-:-:-:02        /*0210*/                   STL [R1+0x4], R2
   -:-:-:-:02        /*0220*/                   LDSM.16.M88.4 R4, [R3]
   -:-:-:-:02        /*0230*/              @!P2 STS [R3], R2
   -:-:-:Y:05        /*0240*/               @P1 BRA `(.L_x_0)
   -:-:-:Y:05        /*0250*/                   EXIT
.L_x_2:
   -:0:2:Y:03        /*0260*/  SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R7], R8
   2:-:-:Y:05        /*0270*/              @!P1 BRA `(.L_x_2)
   -:-:-:Y:05        /*0280*/                   BRA `(.L_x_1)
.L_x_3:
   -:-:-:-:00        /*0290*/                   BRA `(.L_x_3)
   -:-:-:Y:01        /*02a0*/                   NOP
.L_x_4:
"""
REPORT = """
ptxas warning : Registers are spilled to local memory, 8 bytes spill stores
ptxas info    : Function properties for example
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 1 bytes smem
"""


def test_each_kind_is_counted_and_the_loop_from_its_label_to_its_branch():
  assert machine_code_sass.counts(KERNEL, REPORT) == {
    "instructions": 31,
    "registers": 255,
    "spilled_bytes": 20,
    "waits": 1,
    "barriers": 1,
    "shared": 2,
    "products": 16,
    "copies": 1,
    "local": 1,
    "loop": 23,  # not from .L_x_1: waiting behind the kernel is no loop
  }


def test_a_kernel_without_a_loop_has_none():
  kernel = KERNEL.replace("@P1 BRA `(.L_x_0)", "NOP")
  assert machine_code_sass.counts(kernel, REPORT)["loop"] == 0


def test_of_nested_loops_the_inner_one_counts():
  kernel = KERNEL.replace(
    "   -:-:-:Y:05        /*0250*/                   EXIT",
    "   -:-:-:Y:05        /*0250*/               @P3 BRA `(.L_x_0)",
  )
  assert machine_code_sass.counts(kernel, REPORT)["loop"] == 23


@pytest.mark.parametrize("text, report", [("", REPORT), (KERNEL, "")])
def test_what_tells_nothing_is_refused(text, report):
  with pytest.raises(ValueError, match="no instructions, or no registers"):
    machine_code_sass.counts(text, report)
