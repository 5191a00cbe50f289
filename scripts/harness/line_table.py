"""Which line of the source each instruction of a kernel or of a module is of, by DWARF."""

import bisect
import io
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.lineprogram import LineProgram
from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section

from harness.errors import MachineError

# In an object, each section has addresses of its own, which begin with 0; here, with its index,
# in these bits of an address.
SECTION_SHIFT = 32
# Of a symbol in ELF: name, info, other, section, value, size.
SYMBOL = struct.Struct("<IBBHQQ")

# Of the source files of a unit, by their number in it.
Names = dict[int, str]


@dataclass(frozen=True, order=True)
class Row:
    """Instructions that are of one line, those of what was inlined there included."""

    start: int
    end: int
    file: str
    line: int


@dataclass
class LineTable:
    """Of an ELF file: what it has of some files of the source."""

    rows: list[Row]
    # Start and size of those with code; the kernel's are where they will be.
    sections: dict[str, tuple[int, int]] = field(default_factory=dict)

    def lines(self) -> set[tuple[str, int]]:
        return {(row.file, row.line) for row in self.rows}

    def reached(self, addresses: Iterable[int]) -> set[tuple[str, int]]:
        """The lines that these instructions are of."""
        ordered = sorted(addresses)
        found = set()
        for row in self.rows:
            number = bisect.bisect_left(ordered, row.start)
            if number < len(ordered) and ordered[number] < row.end:
                found.add((row.file, row.line))
        return found

    def ranges(self, gap: int) -> list[tuple[int, int]]:
        """What all instructions are in; no two ranges are nearer than gap."""
        found: list[tuple[int, int]] = []
        for row in sorted(self.rows):
            if found and row.start - found[-1][1] < gap:
                found[-1] = (found[-1][0], max(found[-1][1], row.end))
            else:
                found.append((row.start, row.end))
        return found


def separate_sections(data: bytearray) -> None:
    """Gives each section with code of an object addresses that no other one has."""
    elf = ELFFile(io.BytesIO(bytes(data)))
    if elf["e_type"] != "ET_REL":
        return
    code = {number for number, section in enumerate(elf.iter_sections()) if is_code(section)}
    table = elf.get_section_by_name(".symtab")
    assert table  # by which it is linked
    for offset in range(table["sh_offset"], table["sh_offset"] + table["sh_size"], SYMBOL.size):
        name, info, other, section, value, size = SYMBOL.unpack_from(data, offset)
        if section in code:
            value += section << SECTION_SHIFT
            SYMBOL.pack_into(data, offset, name, info, other, section, value, size)


def is_code(section: Section) -> bool:
    return bool(section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR)


def sections(elf: ELFFile) -> dict[str, tuple[int, int]]:
    relocatable = elf["e_type"] == "ET_REL"
    return {
        section.name: (number << SECTION_SHIFT if relocatable else section["sh_addr"], section["sh_size"])
        for number, section in enumerate(elf.iter_sections())
        if is_code(section)
    }


def file_names(unit: CompileUnit, program: LineProgram, tree: Path, wanted: set[str]) -> Names:
    """The wanted files of a unit, which are relative to the tree."""
    folder = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    folder_name = folder.value.decode() if folder else str(tree)
    header = program.header
    # Before DWARF 5, the first ones have the number 1, and folder 0 is the compiler's.
    first = 0 if header["version"] >= 5 else 1
    folders = [name.decode() for name in header["include_directory"]]
    if first:
        folders.insert(0, folder_name)
    found = {}
    for number, entry in enumerate(header["file_entry"], first):
        name = entry.name.decode()
        path = os.path.normpath(os.path.join(folder_name, folders[entry.dir_index], name))
        relative = os.path.relpath(path, tree)
        if relative in wanted:
            found[number] = relative
    return found


def own_rows(program: LineProgram, names: Names) -> Iterator[Row]:
    """What a line program says of files that have a name. Instructions of line 0 are of none."""
    last = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        name = names.get(last.file) if last else None
        if last and name and last.line and last.address < state.address:
            yield Row(last.address, state.address, name, last.line)
        last = None if state.end_sequence else state


def inlined_rows(unit: CompileUnit, names: Names) -> Iterator[Row]:
    """The instructions of functions, also of those in other files, for the line that they are inlined in."""
    for entry in unit.iter_DIEs():
        if entry.tag != "DW_TAG_inlined_subroutine":
            continue
        name = names.get(entry.attributes["DW_AT_call_file"].value)
        line = entry.attributes["DW_AT_call_line"].value
        if name and line:
            for start, end in instructions(unit, entry):
                yield Row(start, end, name, line)


def instructions(unit: CompileUnit, entry: DIE) -> Iterator[tuple[int, int]]:
    """Where the code of an entry is."""
    attributes = entry.attributes
    if "DW_AT_low_pc" in attributes:
        start = attributes["DW_AT_low_pc"].value
        yield start, start + attributes["DW_AT_high_pc"].value
        return
    lists = unit.dwarfinfo.range_lists()
    assert lists
    top = unit.get_top_DIE().attributes
    base = top["DW_AT_low_pc"].value if "DW_AT_low_pc" in top else 0
    for part in lists.get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit):
        if isinstance(part, BaseAddressEntry):
            base = part.base_address
        else:
            offset = 0 if part.is_absolute else base
            yield part.begin_offset + offset, part.end_offset + offset


def read(path: Path, tree: Path, wanted: set[str]) -> LineTable:
    """The line table of a kernel or a module that was built from a tree."""
    tree = tree.resolve()
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    separate_sections(data)
    elf = ELFFile(io.BytesIO(bytes(data)))
    found: set[Row] = set()
    if elf.has_dwarf_info():
        dwarf = elf.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            names = file_names(unit, program, tree, wanted) if program else {}
            if program and names:
                found.update(own_rows(program, names), inlined_rows(unit, names))
    if not found:
        raise MachineError(f"{path} has no line tables: it is not of the kernel for coverage")
    return LineTable(sorted(found), sections(elf))
