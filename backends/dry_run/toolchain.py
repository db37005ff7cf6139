"""A stand-in for Tenstorrent's RISC-V compiler: it writes empty programs that TT-Metal will load.

TT-Metal compiles every kernel before a program can run. Mock devices never execute one, so a
three-line shell script takes the compiler's place: about 1.5 ms a call instead of seconds.
Next: overlay.py puts it where the wheel looks.
"""

from __future__ import annotations

import struct
from pathlib import Path

# Part of TT-Metal's build key: kernels built by the stub can never be mistaken for real ones.
STUB_VERSION = "stub[0]"

_TEXT_ADDRESS, _DATA_ADDRESS = 0x6000, 0xFFB00800  # any text; data in the cores' local memory
_SECTION_NAMES = (".text", ".data", ".rela.text", ".symtab", ".strtab")

_COMPILER = r"""#!/bin/sh
# Answers --version, writes an empty object or header, and "links" the one program there is.
out= depfile= target= sources= previous=
for argument do
  case $previous in
    -o) out=$argument ;; -MF) depfile=$argument ;; -MT) target=$argument ;;
  esac
  case $argument in
    --version|-dumpversion) echo "riscv-tt-elf-g++ (tenstorrent/sfpi:@VERSION@) 15.1.0"; exit 0 ;;
    *.cc|*.cpp|*.c|*.S) sources="$sources $argument" ;;
  esac
  previous=$argument
done
[ -n "$depfile" ] && echo "${target:-$out}:$sources" > "$depfile"
case $out in
  '') ;;
  *.elf) printf '@ELF@' > "$out" ;;
  *) : > "$out" ;;
esac
"""


def empty_program() -> bytes:
    """The smallest RISC-V executable that TT-Metal's loader accepts, 432 bytes.

    It wants two loadable segments (text, with the entry point at its start, and data), and a
    relocation section of the text, which may be empty but must exist.
    """
    text = struct.pack("<4I", 0x00008067, 0x13, 0x13, 0x13)  # ret, and three times nothing
    data = bytes(4)
    names = b"\0" + b"".join(name.encode() + b"\0" for name in _SECTION_NAMES)
    text_at = 52 + 2 * 32  # after the ELF header and two program headers
    data_at = text_at + len(text)
    symbols_at = data_at + len(data)
    names_at = symbols_at + 16  # one empty symbol
    sections_at = (names_at + len(names) + 3) & ~3

    def named(name: str) -> int:
        return names.index(b"\0" + name.encode() + b"\0") + 1

    header = b"\x7fELF\1\1\1" + bytes(9)
    header += struct.pack(
        "<HHIIIIIHHHHHH",
        *(2, 243, 1),  # executable, RISC-V, version
        *(_TEXT_ADDRESS, 52, sections_at, 0),  # entry, program headers, section headers, flags
        *(52, 32, 2, 40, 1 + len(_SECTION_NAMES), len(_SECTION_NAMES)),
    )
    program_headers = struct.pack(
        "<8I", 1, text_at, _TEXT_ADDRESS, _TEXT_ADDRESS, len(text), len(text), 5, 16
    ) + struct.pack(
        "<8I", 1, data_at, _DATA_ADDRESS, _TEXT_ADDRESS + len(text), len(data), len(data), 6, 16
    )
    sections = bytes(40) + b"".join(
        struct.pack("<10I", *fields)
        for fields in (
            (named(".text"), 1, 6, _TEXT_ADDRESS, text_at, len(text), 0, 0, 4, 0),
            (named(".data"), 1, 3, _DATA_ADDRESS, data_at, len(data), 0, 0, 4, 0),
            (named(".rela.text"), 4, 0x40, 0, symbols_at, 0, 4, 1, 4, 12),
            (named(".symtab"), 2, 0, 0, symbols_at, 16, 5, 1, 4, 16),
            (named(".strtab"), 3, 0, 0, names_at, len(names), 0, 0, 1, 0),
        )
    )
    body = header + program_headers + text + data + bytes(16) + names
    return body.ljust(sections_at, b"\0") + sections


def compiler_script() -> str:
    """The stand-in as a shell script; it needs nothing but /bin/sh."""
    octal = "".join(f"\\{byte:03o}" for byte in empty_program())
    return _COMPILER.replace("@VERSION@", STUB_VERSION).replace("@ELF@", octal)


def write_toolchain(directory: Path) -> None:
    """Put the stand-in into `directory` as TT-Metal expects its compiler."""
    programs = directory / "compiler" / "bin"
    programs.mkdir(parents=True)
    (directory / "include").mkdir()
    for name in ("riscv-tt-elf-g++", "riscv32-tt-elf-g++"):
        program = programs / name
        program.write_text(compiler_script())
        program.chmod(0o755)
