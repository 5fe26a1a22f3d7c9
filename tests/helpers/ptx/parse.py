"""PTX text as data: the kernels of a module, their parameters, memory and basic blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Bytes between two variables in shared memory, so that an access beyond one is out of bounds. A
# multiple of the 128 bytes of a bank row: the banks of the variables stay what they are.
RED_ZONE = 128

_BITS = re.compile(r"(\d+)(?:x2)?$")


def size_of(type_name: str) -> int:
    """Bytes of a PTX type such as "u32", "bf16x2" or "tf32"."""
    if type_name == "tf32":
        return 4
    found = _BITS.search(type_name)
    assert found, f"no type: {type_name}"
    return int(found[1]) // 8 * (2 if type_name.endswith("x2") else 1)


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``guard`` is the predicate register that it depends on, or ""."""

    opcode: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False
    line: str = ""  # file and line of the source, where the compiler gives them

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def type(self) -> str:
        return self.parts[-1]

    @property
    def vector(self) -> int:
        """Elements of a vector access: 1, 2 or 4."""
        return next((int(p[1]) for p in self.parts if p in ("v2", "v4")), 1)

    @property
    def space(self) -> str:
        """State space of a memory access."""
        for part in self.parts:
            name = part.split("::")[0]
            if name in ("global", "shared", "param", "const", "local"):
                return name
        return "generic"

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        where = f"  ({self.line})" if self.line else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"[:120] + where


@dataclass
class Block:
    """A basic block. It ends before a label, after a branch, a return or a barrier."""

    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Kernel:
    """A kernel: offset and size of each parameter, offset of each shared variable, the code."""

    name: str
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    parameter_bytes: int = 0
    registers: dict[str, str] = field(default_factory=dict)  # register -> type
    shared: dict[str, int] = field(default_factory=dict)
    shared_bounds: list[tuple[int, int]] = field(default_factory=list)  # of static variables
    dynamic: str = ""  # the variable of dynamic size
    threads: int = 0  # the number of threads that the kernel requires, or 0
    blocks: list[Block] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def instructions(self) -> list[Instruction]:
        return [i for block in self.blocks for i in block.instructions]

    @property
    def shared_bytes(self) -> int:
        """Bytes of the static variables, without the red zones of this machine."""
        return sum(last - first for first, last in self.shared_bounds)


def split_operands(text: str) -> tuple[str, ...]:
    """Operands at the top level: "{%r1, %r2}, [%rd1+4], 0" are three."""
    operands, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        operands.append(current.strip())
    return tuple(operands)


def elements(operand: str) -> list[str]:
    """The registers of a vector operand "{%r1, %r2}"; one of any other operand."""
    return [e.strip() for e in operand.strip("{} \n\t").split(",")]


class Module(Mapping[str, Kernel]):
    """The kernels of a PTX module by name; each is parsed when it is first asked for."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
        self._files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        common, *parts = text.split(".entry ")
        self._common = common
        self._texts = {part.split("(", 1)[0].strip(): part for part in parts}
        self._kernels: dict[str, Kernel] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = _kernel(self._texts[name], self._common, self._files)
        return self._kernels[name]


def _kernel(text: str, common: str, files: dict[str, str]) -> Kernel:
    text = re.sub(r"^\s*\.loc\s+(\d+)\s+(\d+)[^\n]*$", r"@loc \1 \2;", text, flags=re.MULTILINE)
    dynamic = re.search(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", common)
    name, rest = text.split("(", 1)
    parameters, rest = rest.split(")", 1)
    directives, rest = rest.split("{", 1)
    kernel = Kernel(name.strip(), dynamic=dynamic[1] if dynamic else "")
    required = re.search(r"\.reqntid\s+(\d+)", directives)
    kernel.threads = int(required[1]) if required else 0
    _parameters(kernel, parameters)
    for declaration in re.findall(r"^\s*\.(?!extern)(?:\w+ )*shared\s[^;]*;", common, re.MULTILINE):
        _shared(kernel, declaration)
    _body(kernel, rest[: rest.index("\n}")], files)
    return kernel


def _parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    pattern = (
        r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr[\s.\w]*?\s)?(\w+)(?:\[(\d+)\])?$"
    )
    for declaration in filter(None, (p.strip() for p in text.split(","))):
        found = re.match(pattern, declaration)
        assert found, declaration
        align, kind, name, count = found.groups()
        size = size_of(kind) * int(count or 1)
        align = int(align or size)
        offset = -(-offset // align) * align
        kernel.parameters[name] = offset, size
        offset += size
    kernel.parameter_bytes = offset


def _shared(kernel: Kernel, declaration: str) -> None:
    found = re.search(r"\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", declaration)
    if not found or declaration.rstrip().endswith("[]"):
        return
    last = kernel.shared_bounds[-1][1] if kernel.shared_bounds else 0
    align = max(int(found[1]), RED_ZONE)
    first = -(-(last + RED_ZONE) // align) * align
    kernel.shared[found[3]] = first
    size = size_of(found[2]) * int(found[4] or 1)
    kernel.shared_bounds.append((first, first + size))


def _statements(body: str) -> list[str]:
    """Labels, statements and the braces of scopes, in order."""
    found, position = [], 0
    pattern = re.compile(r"\s*(?:([{}])|([$\w]+):(?!:)|([^;]*?);)", re.DOTALL)
    while body[position:].strip():
        match = pattern.match(body, position)
        assert match, body[position : position + 80]
        found.append(match[1] or (f"{match[2]}:" if match[2] else match[3].strip()))
        position = match.end()
    return found


def _body(kernel: Kernel, body: str, files: dict[str, str]) -> None:
    line = ""
    block = Block()
    kernel.blocks.append(block)
    for statement in _statements(body):
        if statement in "{}" or statement.startswith((".pragma", ".branchtargets")):
            continue
        if statement.startswith("@loc"):
            _, file, number = statement.split()
            line = f"{files.get(file, '').rsplit('/', 1)[-1]}:{number}"
        elif statement.startswith(".reg"):
            _registers(kernel, statement)
        elif ".shared" in statement.split("[")[0] and statement.startswith("."):
            _shared(kernel, statement)
        elif statement.endswith(":"):
            if block.instructions:
                block = Block()
                kernel.blocks.append(block)
            kernel.labels[statement[:-1]] = len(kernel.blocks) - 1
        else:
            found = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.DOTALL)
            assert found, statement
            instruction = Instruction(
                found[3], split_operands(found[4]), found[2] or "", found[1] == "!", line
            )
            block.instructions.append(instruction)
            if instruction.parts[0] in ("bra", "ret", "exit", "bar", "barrier"):
                block = Block()
                kernel.blocks.append(block)
    if not block.instructions:
        kernel.blocks.pop()


def _registers(kernel: Kernel, statement: str) -> None:
    found = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.DOTALL)
    assert found, statement
    for name in found[2].split(","):
        counted = re.match(r"\s*(%?[\w$]+)<(\d+)>", name)
        if counted:
            kernel.registers |= {f"{counted[1]}{i}": found[1] for i in range(int(counted[2]))}
        else:
            kernel.registers[name.strip()] = found[1]
