"""Basic blocks of PTX as Python functions on numpy arrays.

Each block becomes one function ``block(machine, registers, lanes)``. Inside it a register is a
local variable that holds the values of all threads; only registers that another block reads are
written back, for the lanes given (all where ``lanes`` is None). Values that are the same in all
threads of a block, or in all blocks, keep a dimension of size 1 or none: numpy broadcasts them.

Arithmetic is generated inline. Memory, and instructions that exchange data between lanes, are
methods of the machine (``machine.py``). An instruction without a translation raises
``NotImplementedError`` when its kernel is translated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.helpers.ptx import arithmetic
from tests.helpers.ptx.parse import Block, Instruction, Kernel, elements, size_of

# numpy dtypes by their names in the generated code: kind and bytes.
DTYPES: dict[str, Any] = {
    "u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "u8": np.uint64,
    "i1": np.int8, "i2": np.int16, "i4": np.int32, "i8": np.int64,
    "f2": np.float16, "f4": np.float32, "f8": np.float64, "p": np.bool_,
}  # fmt: skip


def dtype_of(type_name: str) -> str:
    """numpy dtype of a PTX type; bit types, packed ones, bf16 and tf32 are unsigned integers."""
    if type_name == "pred":
        return "p"
    if type_name in ("f16", "f32", "f64"):
        return f"f{size_of(type_name)}"
    return f"{'i' if type_name[0] == 's' else 'u'}{size_of(type_name)}"


def canonical(type_name: str) -> str:
    """dtype in which a register of this type is kept between blocks."""
    return "p" if type_name == "pred" else f"u{size_of(type_name)}"


# Expressions of instructions whose operands and result have the type of the instruction.
_SAME: dict[str, str] = {
    "add": "{} + {}", "sub": "{} - {}", "neg": "-{}", "abs": "np.abs({})",
    "and": "{} & {}", "or": "{} | {}", "xor": "{} ^ {}", "not": "~{}",
}  # fmt: skip
_COMPARE = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]$|%(laneid|warpid)$")
_NUMBER = re.compile(r"-?(0[xX])?[\da-fA-F]+U?$")


class Translated:
    """A kernel with one function per basic block."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.numbers = {name: i for i, name in enumerate(kernel.registers)}
        # Accesses to memory, by the number that the generated code passes to the machine.
        self.sites: list[Instruction] = []
        self.read_before_written = self._live()
        source = [_BlockWriter(self, i).source() for i in range(len(kernel.blocks))]
        self.source = "\n".join(source)
        namespace: dict[str, Any] = {"np": np, "A": arithmetic, **DTYPES}
        self.constants: dict[str, Any] = namespace
        exec(compile(self.source, f"<{kernel.name}>", "exec"), namespace)
        self.functions: list[Callable[..., Any]] = [
            namespace[f"block_{i}"] for i in range(len(kernel.blocks))
        ]

    def initial_registers(self) -> list[Any]:
        return [DTYPES[canonical(t)](0) for t in self.kernel.registers.values()]

    def _live(self) -> set[str]:
        """Registers that some block reads before it writes them: those carried between blocks."""
        names = re.compile(r"%?[A-Za-z_$][\w$]*")
        live: set[str] = set()
        for block in self.kernel.blocks:
            written: set[str] = set()
            for instruction in block.instructions:
                results = result_registers(instruction)
                # A guarded write keeps the old value in some lanes; accumulators are read too.
                reads = set(names.findall(" ".join(instruction.operands[bool(results) :])))
                reads |= {instruction.guard}
                if instruction.guard or instruction.parts[0] == "wgmma":
                    reads |= set(results)
                live |= (reads & self.kernel.registers.keys()) - written
                written |= set(results)
        return live


def result_registers(instruction: Instruction) -> list[str]:
    """Registers that an instruction writes."""
    without = (
        "st",
        "stmatrix",
        "bra",
        "ret",
        "exit",
        "bar",
        "barrier",
        "red",
        "fence",
        "membar",
        "cp",
    )
    if instruction.parts[0] in without or not instruction.operands:
        return []
    if instruction.parts[0] == "wgmma" and instruction.parts[1] != "mma_async":
        return []
    found = [e for part in instruction.operands[0].split("|") for e in elements(part)]
    return [e for e in found if e != "_"]


class _BlockWriter:
    """Writes the function of one basic block."""

    def __init__(self, translated: Translated, number: int) -> None:
        self.translated = translated
        self.kernel = translated.kernel
        self.number = number
        self.lines: list[str] = []
        self.values: dict[tuple[str, str], str] = {}  # (register, dtype) -> expression
        self.dtypes: dict[str, str] = {}  # register -> dtype of its value
        self.written: dict[str, None] = {}
        self.count = 0

    def source(self) -> str:
        end = None
        for instruction in self.kernel.blocks[self.number].instructions:
            kind = instruction.parts[0]
            if kind in ("bra", "ret", "exit", "bar", "barrier"):
                end = instruction
                continue
            translate = getattr(self, f"_{kind}", None)
            if translate is None and kind not in _SAME:
                raise NotImplementedError(f"{self.kernel.name}: {instruction}")
            (translate or self._same)(instruction)
        taken = "None"
        if end is not None and end.guard:
            taken = self.guard(end)
        for register in self.written:
            if register in self.translated.read_before_written:
                number = self.translated.numbers[register]
                value = self.value(register, canonical(self.kernel.registers[register]))
                self.emit(
                    f"r[{number}] = {value} if m is None else np.where(m, {value}, r[{number}])"
                )
        body = "\n".join(f"    {line}" for line in self.lines)
        return f"def block_{self.number}(M, r, m):\n{body}\n    return {taken}\n"

    # --- values -----------------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def local(self, expression: str) -> str:
        self.count += 1
        self.emit(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def constant(self, bits: int, dtype: str) -> str:
        """A constant of the generated module, from its bits."""
        size = DTYPES[dtype]().itemsize
        value = np.array(bits & ((1 << 8 * size) - 1), f"u{size}").view(DTYPES[dtype])[()]
        return f"{dtype}({int(value)})" if dtype[0] in "ui" else f"A.bits({bits}, {dtype})"

    def value(self, operand: str, dtype: str) -> str:
        """An expression for an operand as ``dtype``."""
        if operand in self.kernel.registers:
            return self._register(operand, dtype)
        if operand in self.kernel.shared or operand == self.kernel.dynamic:
            return f"{dtype}({self.kernel.shared.get(operand, 0)})"
        if operand in self.kernel.parameters:
            return f"{dtype}({self.kernel.parameters[operand][0]})"
        if SPECIAL.match(operand):
            return f"M.special[{operand!r}].astype({dtype})"
        if dtype == "p":
            return f"np.bool_({bool(int(operand))})"
        if re.match(r"0[fFdD]", operand):
            return self.constant(int(operand[2:], 16), dtype)
        if _NUMBER.match(operand):
            return self.constant(int(operand.rstrip("U"), 0), dtype)
        raise NotImplementedError(f"{self.kernel.name}: operand {operand}")

    def _register(self, register: str, dtype: str) -> str:
        if (register, dtype) in self.values:
            return self.values[register, dtype]
        if register not in self.dtypes:
            kept = canonical(self.kernel.registers[register])
            self.dtypes[register] = kept
            name = self.local(f"r[{self.translated.numbers[register]}]")
            self.values[register, kept] = name
            return self._register(register, dtype)
        held = self.dtypes[register]
        name = self.values[register, held]
        if held[1:] == dtype[1:]:  # the same bits
            name = self.local(f"{name}.view({dtype})")
        else:  # an instruction narrower than its register uses the lower bits
            name = self.local(f"{name}.view(u{held[1:]}).astype(u{dtype[1:]}).view({dtype})")
        self.values[register, dtype] = name
        return name

    def set(self, register: str, expression: str, dtype: str, guard: str = "") -> None:
        """Give a register a value; with a guard only in the lanes where it is true."""
        if register == "_":
            return
        kept = canonical(self.kernel.registers[register])
        if dtype[1:] != kept[1:]:  # widened according to its sign, or narrowed
            expression = f"({expression}).astype({dtype[0]}{kept[1:]})"
            dtype = f"{dtype[0]}{kept[1:]}"
        if guard:
            expression = f"np.where({guard}, {expression}, {self.value(register, dtype)})"
        name = self.local(expression)
        for key in [k for k in self.values if k[0] == register]:
            del self.values[key]
        self.values[register, dtype] = name
        self.dtypes[register] = dtype
        self.written[register] = None

    def guard(self, instruction: Instruction) -> str:
        if not instruction.guard:
            return ""
        value = self.value(instruction.guard, "p")
        return self.local(f"~{value}") if instruction.negated else value

    def lanes(self, instruction: Instruction) -> str:
        """The lanes in which an instruction takes effect."""
        guard = self.guard(instruction)
        return self.local(f"M.both(m, {guard})") if guard else "m"

    def site(self, instruction: Instruction) -> int:
        self.translated.sites.append(instruction)
        return len(self.translated.sites) - 1

    def address(self, operand: str) -> str:
        """The address "[register + offset]" as int64, in bytes."""
        found = re.match(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        assert found, operand
        base, offset = found[1], int(found[2], 0) if found[2] else 0
        if base in self.kernel.registers:
            wide = self.kernel.registers[base].endswith("64")
            value = self.value(base, "i8" if wide else "u4")
            value = value if wide else f"{value}.astype(i8)"
            return f"{value} + {offset}" if offset else value
        return f"i8({self.kernel.shared.get(base, 0) + offset})"

    # --- arithmetic -------------------------------------------------------------------------------

    def arguments(self, instruction: Instruction, dtype: str, count: int) -> list[str]:
        return [self.value(o, dtype) for o in instruction.operands[1 : 1 + count]]

    def result(self, instruction: Instruction, expression: str, dtype: str) -> None:
        self.set(instruction.operands[0], expression, dtype, self.guard(instruction))

    def _same(self, instruction: Instruction) -> None:
        template = _SAME[instruction.parts[0]]
        kind = instruction.type
        if kind in ("f16x2", "bf16x2", "bf16") and instruction.parts[0] in (
            "add",
            "sub",
            "neg",
            "abs",
        ):
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        dtype = dtype_of(kind)
        arguments = self.arguments(instruction, dtype, template.count("{}"))
        self.result(instruction, template.format(*arguments), dtype)

    def _function(self, instruction: Instruction, name: str, count: int) -> None:
        dtype = dtype_of(instruction.type)
        arguments = self.arguments(instruction, dtype, count)
        self.result(instruction, f"{name}({', '.join(arguments)})", dtype)

    def _mul(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a, b = self.arguments(instruction, dtype, 2)
        if "wide" in instruction.parts:
            dtype = f"{dtype[0]}{2 * int(dtype[1])}"
            self.result(instruction, f"{a}.astype({dtype}) * {b}.astype({dtype})", dtype)
        elif "hi" in instruction.parts:
            self.result(instruction, f"A.high_product({a}, {b})", dtype)
        else:
            self.result(instruction, f"{a} * {b}", dtype)

    def _mad(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a, b = self.arguments(instruction, dtype, 2)
        if "wide" in instruction.parts:
            dtype = f"{dtype[0]}{2 * int(dtype[1])}"
            a, b = f"{a}.astype({dtype})", f"{b}.astype({dtype})"
        elif "lo" not in instruction.parts:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        self.result(instruction, f"{a} * {b} + {self.value(instruction.operands[3], dtype)}", dtype)

    def _fma(self, instruction: Instruction) -> None:
        self._function(instruction, f"A.fma_{instruction.type}", 3)

    def _div(self, instruction: Instruction) -> None:
        if instruction.type[0] == "f":
            a, b = self.arguments(instruction, dtype_of(instruction.type), 2)
            self.result(instruction, f"{a} / {b}", dtype_of(instruction.type))
        else:
            self._function(instruction, "A.divide", 2)

    def _rem(self, instruction: Instruction) -> None:
        self._function(instruction, "A.remainder", 2)

    def _min(self, instruction: Instruction) -> None:
        quiet = instruction.type[0] == "f" and "NaN" not in instruction.parts
        self._function(instruction, "np.fmin" if quiet else "np.minimum", 2)

    def _max(self, instruction: Instruction) -> None:
        quiet = instruction.type[0] == "f" and "NaN" not in instruction.parts
        self._function(instruction, "np.fmax" if quiet else "np.maximum", 2)

    def _popc(self, instruction: Instruction) -> None:
        a = self.value(instruction.operands[1], dtype_of(instruction.type))
        self.result(instruction, f"A.count_bits({a})", "u4")

    def _rcp(self, instruction: Instruction) -> None:
        self._function(instruction, "A.reciprocal", 1)

    def _shl(self, instruction: Instruction) -> None:
        dtype = f"u{size_of(instruction.type)}"
        a, by = (
            self.value(instruction.operands[1], dtype),
            self.value(instruction.operands[2], "u4"),
        )
        self.result(instruction, f"A.shift_left({a}, {by})", dtype)

    def _shr(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a, by = (
            self.value(instruction.operands[1], dtype),
            self.value(instruction.operands[2], "u4"),
        )
        self.result(instruction, f"A.shift_right({a}, {by})", dtype)

    def _bfe(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a = self.value(instruction.operands[1], dtype)
        first, length = (self.value(o, "u4") for o in instruction.operands[2:4])
        self.result(instruction, f"A.extract_bits({a}, {first}, {length})", dtype)

    def _bfi(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a, b = self.arguments(instruction, dtype, 2)
        first, length = (self.value(o, "u4") for o in instruction.operands[3:5])
        self.result(instruction, f"A.insert_bits({a}, {b}, {first}, {length})", dtype)

    def _prmt(self, instruction: Instruction) -> None:
        self._function(instruction, "A.permute_bytes", 3)

    def _selp(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        a, b = self.arguments(instruction, dtype, 2)
        chosen = self.value(instruction.operands[3], "p")
        self.result(instruction, f"np.where({chosen}, {a}, {b})", dtype)

    def _setp(self, instruction: Instruction) -> None:
        comparison, kind = instruction.parts[1], instruction.type
        results = instruction.operands[0].split("|")
        if len(instruction.parts) != 3 or (len(results) > 1) != kind.endswith("x2"):
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        a, b = self.arguments(instruction, dtype_of(kind), 2)
        pairs = [(a, b)]
        if kind.endswith("x2"):
            half = f"A.half_of_{kind}"
            pairs = [
                (self.local(f"{half}({a}, {i})"), self.local(f"{half}({b}, {i})")) for i in (0, 1)
            ]
        elif kind == "bf16":
            pairs = [(self.local(f"A.from_bf16({a})"), self.local(f"A.from_bf16({b})"))]
        floating = "f" in kind
        for result, (x, y) in zip(results, pairs, strict=True):
            self.set(result, self._comparison(comparison, x, y, floating), "p",
                     self.guard(instruction))  # fmt: skip

    @staticmethod
    def _comparison(name: str, a: str, b: str, floating: bool) -> str:
        if not floating:
            return f"{a} {_COMPARE[name]} {b}"
        unordered = f"(np.isnan({a}) | np.isnan({b}))"
        if name in ("num", "nan"):
            return unordered if name == "nan" else f"~{unordered}"
        if name == "ne":  # ordered; Python's is true for NaN
            return f"({a} != {b}) & ~{unordered}"
        if name.endswith("u"):
            return f"({a} {_COMPARE[name[:-1]]} {b}) | {unordered}"
        return f"{a} {_COMPARE[name]} {b}"

    def _cvt(self, instruction: Instruction) -> None:
        to, of = instruction.parts[-2:]
        if to in ("bf16x2", "f16x2"):  # the first source is the upper half
            high, low = self.arguments(instruction, "f4", 2)
            self.result(instruction, f"A.pack_{to}({high}, {low})", "u4")
            return
        (a,) = self.arguments(instruction, dtype_of(of), 1)
        if to == "tf32":
            assert "rna" in instruction.parts, instruction
            self.result(instruction, f"A.to_tf32({a})", "u4")
        elif to == "bf16" and of == "f32":
            self.result(instruction, f"A.to_bf16({a})", "u2")
        elif of == "bf16" and to == "f32":
            self.result(instruction, f"A.from_bf16({a})", "f4")
        elif (of in ("f32", "f64") and to[0] in "su" and "rzi" in instruction.parts) or (
            (of[0] == "f") <= (to[0] == "f") and "bf16" not in (to, of)
        ):
            self.result(instruction, f"{a}.astype({dtype_of(to)})", dtype_of(to))
        else:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")

    def _cvta(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)  # addresses of one space are those of all
        self.result(instruction, self.value(instruction.operands[1], dtype), dtype)

    def _mov(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        to, of = instruction.operands
        guard = self.guard(instruction)
        if to.startswith("{"):
            parts = elements(to)
            size = int(dtype[1]) // len(parts)
            whole = self.value(of, f"u{dtype[1]}")
            pieces = [self.local(f"A.piece({whole}, {i}, u{size})") for i in range(len(parts))]
            for part, piece in zip(parts, pieces, strict=True):
                self.set(part, piece, f"u{size}", guard)
        elif of.startswith("{"):
            size = int(dtype[1]) // len(elements(of))
            pieces = [self.value(o, f"u{size}") for o in elements(of)]
            self.set(to, f"A.join(({', '.join(pieces)}), u{dtype[1]})", f"u{dtype[1]}", guard)
        else:
            self.set(to, self.value(of, dtype), dtype, guard)

    # --- memory -----------------------------------------------------------------------------------

    def _ld(self, instruction: Instruction) -> None:
        dtype = dtype_of(instruction.type)
        size, registers = int(dtype[1]), elements(instruction.operands[0])
        if instruction.space == "param":
            found = re.match(r"\[\s*([\w$%]+)\s*(?:\+\s*(-?\d+))?\s*\]", instruction.operands[1])
            assert found, instruction
            offset = int(found[2] or 0)
            if found[1] in self.kernel.parameters:
                start = str(self.kernel.parameters[found[1]][0] + offset)
            else:  # indexed by a register
                start = self.local(f"{self.value(found[1], 'i8')} + {offset}")
            for i, register in enumerate(registers):
                self.set(register, f"M.parameter({start} + {i * size}, {dtype}, m)", dtype,
                         self.guard(instruction))  # fmt: skip
            return
        lanes, address = self.lanes(instruction), self.address(instruction.operands[1])
        guard = self.guard(instruction)
        loaded = self.local(
            f"M.load({instruction.space!r}, {address}, {lanes}, {size}, {len(registers)}, "
            f"{self.site(instruction)})"
        )
        for i, register in enumerate(registers):
            self.set(register, f"{loaded}[{i}].view({dtype})", dtype, guard)

    def _st(self, instruction: Instruction) -> None:
        size = size_of(instruction.type)
        values = [self.value(o, f"u{size}") for o in elements(instruction.operands[1])]
        self.emit(
            f"M.store({instruction.space!r}, {self.address(instruction.operands[0])}, "
            f"{self.lanes(instruction)}, {size}, ({', '.join(values)},), {self.site(instruction)})"
        )

    def _atom(self, instruction: Instruction) -> None:
        parts = instruction.parts
        operation = next((p for p in parts[1:] if p in ("add", "min", "max", "exch")), "")
        if not operation:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        dtype = dtype_of(instruction.type)
        both = "acq_rel" in parts
        releases, acquires = both or "release" in parts, both or "acquire" in parts
        operands = instruction.operands if parts[0] == "atom" else ("_", *instruction.operands)
        old = self.local(
            f"M.atomic({instruction.space!r}, {operation!r}, {self.address(operands[1])}, "
            f"{self.lanes(instruction)}, {self.value(operands[2], dtype)}, "
            f"{self.site(instruction)}, {releases}, {acquires})"
        )
        self.set(operands[0], old, dtype, self.guard(instruction))

    _red = _atom

    def _cp(self, instruction: Instruction) -> None:
        lanes = self.lanes(instruction)
        if instruction.parts[:2] != ["cp", "async"] or "bulk" in instruction.parts:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        if "commit_group" in instruction.parts:
            self.emit(f"M.commit_copies({lanes})")
        elif "wait_group" in instruction.parts or "wait_all" in instruction.parts:
            pending = int(instruction.operands[0]) if instruction.operands else 0
            self.emit(f"M.wait_copies({pending}, {lanes})")
        else:
            to, of, size, *source = instruction.operands
            count = self.value(source[0], "u4") if source else f"u4({int(size, 0)})"
            self.emit(
                f"M.copy({self.address(to)}, {self.address(of)}, {lanes}, {int(size, 0)}, {count}, "
                f"{self.site(instruction)})"
            )

    # --- between lanes ----------------------------------------------------------------------------

    def _shfl(self, instruction: Instruction) -> None:
        mode = next(p for p in instruction.parts if p in ("up", "down", "bfly", "idx"))
        value, *others = instruction.operands[1:]
        arguments = ", ".join(self.value(o, "u4") for o in (value, *others))
        moved = self.local(f"M.shuffle({mode!r}, {arguments}, m, {self.site(instruction)})")
        guard = self.guard(instruction)
        for i, register in enumerate(instruction.operands[0].split("|")):
            self.set(register, f"{moved}[{i}]", "p" if i else "u4", guard)

    def _redux(self, instruction: Instruction) -> None:
        operation = next(p for p in instruction.parts if p in ("add", "min", "max", "and", "or"))
        dtype = dtype_of(instruction.type)
        a, mask = (
            self.value(instruction.operands[1], dtype),
            self.value(instruction.operands[2], "u4"),
        )
        self.result(
            instruction, f"M.reduce({operation!r}, {a}, {mask}, m, {self.site(instruction)})", dtype
        )

    def _ldmatrix(self, instruction: Instruction) -> None:
        registers = elements(instruction.operands[0])
        loaded = self.local(
            f"M.load_matrices({self.address(instruction.operands[1])}, {len(registers)}, "
            f"{'trans' in instruction.parts}, {self.lanes(instruction)}, {self.site(instruction)})"
        )
        for i, register in enumerate(registers):
            self.set(register, f"{loaded}[{i}]", "u4")

    def _stmatrix(self, instruction: Instruction) -> None:
        if "trans" in instruction.parts:
            raise NotImplementedError(f"{self.kernel.name}: {instruction}")
        values = ", ".join(self.value(e, "u4") for e in elements(instruction.operands[1]))
        self.emit(
            f"M.store_matrices({self.address(instruction.operands[0])}, ({values},), "
            f"{self.lanes(instruction)}, {self.site(instruction)})"
        )

    def _mma(self, instruction: Instruction) -> None:
        d, *operands = instruction.operands
        shape, kind = instruction.parts[3], instruction.parts[-2]
        a, b = ([self.value(e, "u4") for e in elements(o)] for o in operands[:2])
        c = [self.value(e, "f4") for e in elements(operands[2])]
        product = self.local(
            f"M.multiply({shape!r}, {kind!r}, ({', '.join(a)},), ({', '.join(b)},), "
            f"({', '.join(c)},), m, {self.site(instruction)})"
        )
        for i, register in enumerate(elements(d)):
            self.set(register, f"{product}[{i}]", "f4")

    def _wgmma(self, instruction: Instruction) -> None:
        if instruction.parts[1] == "fence":
            return
        if instruction.parts[1] == "commit_group":
            self.emit("M.commit_products()")
        elif instruction.parts[1] == "wait_group":
            self.emit(f"M.wait_products({int(instruction.operands[0])})")
        else:
            d, a, b, accumulate, *signs = instruction.operands
            assert signs[:2] == ["1", "1"], instruction
            registers = elements(d)
            first = [self.value(e, "u4") for e in elements(a)] if a.startswith("{") else []
            c = ", ".join(self.value(e, "f4") for e in registers)
            product = self.local(
                f"M.multiply_group({instruction.parts[4]!r}, {instruction.type!r}, "
                f"({', '.join(first)}{',' * bool(first)}), "
                f"{'None' if first else self.value(a, 'u8')}, {self.value(b, 'u8')}, ({c},), "
                f"{self.value(accumulate, 'p')}, {signs[2:].count('1') and tuple(signs[2:])!r}, m, "
                f"{self.site(instruction)})"
            )
            for i, register in enumerate(registers):
                self.set(register, f"{product}[{i}]", "f4")

    def _fence(self, instruction: Instruction) -> None:
        if "proxy" in instruction.parts:
            self.emit(f"M.fence_proxy({self.lanes(instruction)})")
        elif "gpu" in instruction.parts or "sys" in instruction.parts:
            self.emit(f"M.between_blocks.fence(M.me, {self.lanes(instruction)})")

    def _membar(self, instruction: Instruction) -> None:
        if "cta" not in instruction.parts:
            self.emit(f"M.between_blocks.fence(M.me, {self.lanes(instruction)})")

    def _removed(self, instruction: Instruction) -> None:
        pass


def without(kernel: Kernel, number: int) -> Kernel:
    """A kernel without its instruction of this number, to see what a check finds."""
    blocks = []
    for block in kernel.blocks:
        instructions = list(block.instructions)
        if 0 <= number < len(instructions):
            instructions[number] = Instruction("removed", ())
        number -= len(instructions)
        blocks.append(Block(instructions))
    return replace(kernel, blocks=blocks)
