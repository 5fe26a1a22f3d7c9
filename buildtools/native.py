"""Build of the kernel libraries ``cekernels/_C.so`` (CPU) and ``cekernels/_C_cuda.so`` (CUDA).

They are plain shared libraries on LibTorch's stable ABI, loaded by ``torch.ops.load_library``: one
build works with every Python and with torch 2.11 or newer, so their names carry no version tag. The
compilers are called directly; of torch only the headers are used, and it is never imported.

Environment variables:

- ``CEKERNELS_BUILD_CPP``, ``CEKERNELS_BUILD_CUDA``: ``1``: the build fails unless the library is
  built; ``0``: it is not built; unset: the first is built where there is a C++ compiler, the second
  where there is nvcc and torch is a CUDA build. A failed compilation is always an error.
- ``CXX``, ``NVCC`` (or ``CUDA_HOME``): the compilers; default: the first ones found.
- ``TORCH_CUDA_ARCH_LIST``: GPU architectures in torch's notation ("8.0;9.0+PTX"); default: those of
  A100, H100 and B200 that this nvcc supports, plus PTX of the last. Architectures before 8.0, for
  which the kernels cannot be compiled, are skipped.
- ``CEKERNELS_NVCC_FLAGS``: additional flags for nvcc ("-ptxas-options=-v"); they are recorded.

``cekernels/_build.json`` records the libraries built, their compilers and flags, and the reasons
for those not built; ``python -m cekernels.info`` shows it. A digest of the sources is part of it:
in an editable installation, the package does not load a library whose sources have changed since it
was compiled, for example by a ``git pull``, and says how to rebuild it. Installing again, with
other extras for example, keeps a library that compiling would only give once more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
STABLE_SINCE = "0x020b000000000000"  # torch 2.11
RECORD = "_build.json"

CXX_FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
    f"-DTORCH_TARGET_VERSION={STABLE_SINCE}",
]
NVCC_FLAGS = ["-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# CPU sources without benefit from wide registers; the others are compiled per instruction set.
COMPILED_ONCE = ("dispatch", "rasterize", "remove_seam")
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# For the products of bfloat16 alone, if the compiler knows these instructions.
AVX512_BF16 = [*AVX512, "-mavx512bf16", "-DCEK_BF16_PRODUCTS"]
ARCHITECTURES = {"8.0": (11, 0), "9.0": (11, 8), "10.0": (12, 8)}  # with their first nvcc


class BuildError(RuntimeError):
    """A library cannot be built although requested or attempted; the message says what to do."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, located without importing it."""

    folder: Path
    version: str
    cuda: str | None

    @property
    def includes(self) -> list[str]:
        return [f"-I{self.folder / 'include'}"]


@dataclass
class Library:
    """One library: its sources, each with its own flags, or the reason why it is not built."""

    name: str
    compiler: str = ""
    objects: list[tuple[Path, str, list[str]]] = field(default_factory=list)
    link: list[str] = field(default_factory=list)
    record: dict[str, object] = field(default_factory=dict)
    skipped: str = ""
    stub_cuda: bool = False


def find_torch() -> Torch | None:
    """The torch of the running environment, or in an isolated build of the target environment."""
    paths = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    spec = PathFinder.find_spec("torch", paths)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        return None
    values: dict[str, str | None] = {"__version__": "unknown", "cuda": None}
    for line in (folder / "version.py").read_text().splitlines():
        match = re.match(r"(__version__|cuda)\b[^=]*= *(?:'([^']*)'|None)", line)
        if match:
            values[match[1]] = match[2]
    return Torch(folder, values["__version__"] or "unknown", values["cuda"])


def find_cxx() -> str | None:
    named = os.environ.get("CXX")
    return (
        named if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    )


def find_nvcc() -> str | None:
    if os.environ.get("NVCC"):
        return os.environ["NVCC"]
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").is_file():
            return str(Path(home) / "bin/nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def requested(variable: str) -> bool | None:
    """True: must be built; False: must not be built; None: built if the machine allows it."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{variable} must be 0, 1 or unset, got {value!r}")
    return None if value == "" else value == "1"


def requirements() -> list[str]:
    """Requirements of an isolated build besides setuptools: torch, if kernels are to be built."""
    wanted = requested("CEKERNELS_BUILD_CPP"), requested("CEKERNELS_BUILD_CUDA")
    if find_torch() or wanted == (False, False) or (find_cxx() is None and True not in wanted):
        return []
    pins = (ROOT / "constraints.txt").read_text().split()
    return [next(pin for pin in pins if pin.startswith("torch=="))]


def plan() -> list[Library]:
    """The two libraries, with their commands or the reasons why they are not built."""
    torch = find_torch()
    return [_plan_cpp(torch), _plan_cuda(torch)]


def _skip(name: str, variable: str, missing: str, remedy: str) -> Library:
    if requested(variable):
        raise BuildError(f"{variable}=1, but {missing}; {remedy}")
    return Library(name, skipped=f"{missing}; {remedy}, then install again")


_NO_TORCH = "no torch with stable-ABI headers (2.11 or newer) is installed", "install torch first"


def _plan_cpp(torch: Torch | None) -> Library:
    name, variable = "_C", "CEKERNELS_BUILD_CPP"
    if requested(variable) is False:
        return Library(name, skipped=f"{variable}=0 when it was installed; reinstall without it")
    cxx = find_cxx()
    if cxx is None:
        return _skip(name, variable, "there is no C++ compiler", "install g++")
    if torch is None:
        return _skip(name, variable, *_NO_TORCH)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {"baseline": list[str]()}
    if x86:
        sets |= {"avx2": AVX2, "avx512": AVX512}
    common = [*CXX_FLAGS, *(["-DCEK_X86"] if x86 else [])]
    products = x86 and _accepts(cxx, "-mavx512bf16")
    if products:
        common.append("-DCEK_AVX512_BF16")
    library = Library(name, cxx)
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        if source.stem in COMPILED_ONCE:
            library.objects.append((source, source.stem, common))
            continue
        library.objects += [
            (source, f"{source.stem}-{isa}", [*common, f"-DCEK_ISA={isa}", *flags])
            for isa, flags in reversed(sets.items())
        ]
    if products:
        source, isa = CSRC / "cpu" / "channelwise_linear.cpp", "avx512_bf16"
        flags = [*common, f"-DCEK_ISA={isa}", *AVX512_BF16]
        library.objects.append((source, f"{source.stem}-{isa}", flags))
    library.objects += _ops("cpp", [*common, *torch.includes])
    library.link = [f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-Wl,--no-undefined"]
    library.record = {
        "compiler": _version(cxx),
        "flags": CXX_FLAGS,
        "instruction sets": [*sets, *(["avx512_bf16"] if products else [])],
        "torch": torch.version,
    }
    return library


def _accepts(cxx: str, flag: str) -> bool:
    """Whether the compiler knows a flag."""
    command = [cxx, flag, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:  # there is no such compiler, which compiling reports
        return False


def _ops(kind: str, flags: list[str]) -> list[tuple[Path, str, list[str]]]:
    """Sources of the torch bindings of the ops, compiled once per library."""
    sources = sorted((CSRC / "ops").glob("*.cpp"))
    return [(source, f"op-{source.stem}-{kind}", flags) for source in sources]


def _plan_cuda(torch: Torch | None) -> Library:
    name, variable = "_C_cuda", "CEKERNELS_BUILD_CUDA"
    wanted = requested(variable)
    if wanted is False:
        return Library(name, skipped=f"{variable}=0 when it was installed; reinstall without it")
    nvcc, cxx = find_nvcc(), find_cxx()
    if nvcc is None:
        return _skip(
            name, variable, "there is no nvcc", "install the CUDA toolkit or set CUDA_HOME"
        )
    if cxx is None:
        return _skip(name, variable, "there is no C++ compiler", "install g++")
    if torch is None:
        return _skip(name, variable, *_NO_TORCH)
    if torch.cuda is None and not wanted:
        return Library(
            name,
            skipped=f"the torch that it was built with ({torch.version}) has no CUDA; install a "
            f"CUDA build of torch, or set {variable}=1 to compile anyway, then install again",
        )
    cuda_home = Path(shutil.which(nvcc) or nvcc).resolve().parent.parent
    version = _version(nvcc)
    architectures = cuda_architectures(version)
    more = shlex.split(os.environ.get("CEKERNELS_NVCC_FLAGS", ""))
    flags = [*NVCC_FLAGS, *architectures, f"-ccbin={cxx}", *more]
    library = Library(name, nvcc)
    library.objects = [
        (source, f"{source.stem}-cuda", flags) for source in sorted((CSRC / "cuda").glob("*.cu"))
    ]
    with_cuda = ["-DCEK_CUDA", "-DUSE_CUDA", *torch.includes, f"-I{cuda_home / 'include'}"]
    library.objects += _ops("cuda", [*CXX_FLAGS, *with_cuda])
    library.link = [f"-ccbin={cxx}", "-cudart=static", "-Xlinker=--no-as-needed"]
    library.link += [f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"]
    library.stub_cuda = not (torch.folder / "lib/libtorch_cuda.so").is_file()
    library.record = {
        "compiler": version,
        "host compiler": _version(cxx),
        "flags": [*NVCC_FLAGS, *more],
        "architectures": architectures,
        "torch": torch.version,
    }
    return library


def cuda_architectures(nvcc_version: str) -> list[str]:
    """The -gencode flags of nvcc for the selected architectures."""
    match = re.search(r"(\d+)\.(\d+)", nvcc_version)
    known = (int(match[1]), int(match[2])) if match else (0, 0)
    default = ";".join(name for name, since in ARCHITECTURES.items() if known >= since) + "+PTX"
    flags, too_old = [], []
    for entry in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "") or default):
        number = entry.removesuffix("+PTX").replace(".", "")
        if not re.fullmatch(r"\d+[af]?", number):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: cannot read {entry!r}; write 8.0;9.0+PTX")
        if int(number.rstrip("af")) < 80:
            too_old.append(entry)
            continue
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if too_old and not flags:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST: the CUDA kernels need 8.0 or newer, not {', '.join(too_old)}; "
            "CEKERNELS_BUILD_CUDA=0 installs without them"
        )
    if too_old:
        print(f"cekernels._C_cuda is built without {', '.join(too_old)}: it needs 8.0 or newer")
    return flags


def _version(compiler: str) -> str:
    try:
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the compiler {compiler!r} cannot be run: {error}") from error
    lines = text.stdout.strip().splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else compiler)


def build(folder: Path, *, keep: bool = True) -> dict[str, object]:
    """Build the libraries of :func:`plan` into ``folder``; write and return the build record.

    With ``keep``, a library that is there is kept if it is what compiling would give: the record
    beside it has the same compiler, commands and sources, and the digest of the file.
    """
    record: dict[str, object] = {}
    folder.mkdir(parents=True, exist_ok=True)
    before = _recorded(folder / RECORD) if keep else {}
    with tempfile.TemporaryDirectory() as temporary:
        for library in plan():
            target = folder / f"{library.name}.so"
            if library.skipped:
                target.unlink(missing_ok=True)
                record[library.name] = {"built": False, "reason": library.skipped}
                print(f"cekernels.{library.name} is not built: {library.skipped}")
                continue
            made = {"built": True, **library.record, "sources": source_digest(library.name)}
            made["commands"] = _command_digest(library)
            if before.get(library.name) == made | {"library": _file_digest(target)}:
                print(f"cekernels.{library.name} is kept: it was built of the same sources")
            else:
                _compile(library, target, Path(temporary))
                print(f"cekernels.{library.name} built: {library.record}")
            record[library.name] = made | {"library": _file_digest(target)}
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(folder / RECORD)
    return record


def _recorded(path: Path) -> dict[str, object]:
    """An earlier build record; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file_digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _command_digest(library: Library) -> str:
    """Digest of what is compiled and linked how."""
    objects = [(source.name, name, flags) for source, name, flags in library.objects]
    text = json.dumps([library.compiler, objects, library.link, library.stub_cuda])
    return hashlib.sha256(text.encode()).hexdigest()


def source_digest(name: str) -> str:
    """Digest of the sources of a library, as the package itself computes it."""
    spec = importlib.util.spec_from_file_location("_sources", ROOT / "cekernels/_sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    digest: str = module.digest(CSRC, name)
    return digest


def _compile(library: Library, target: Path, temporary: Path) -> None:
    def compile_one(item: tuple[Path, str, list[str]]) -> str:
        source, name, flags = item
        output = temporary / f"{name}.o"
        compiler = library.compiler if source.suffix == ".cu" else find_cxx() or library.compiler
        _run(library, [compiler, *flags, "-c", str(source), "-o", str(output)])
        return str(output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, library.objects))
    link = list(library.link)
    if library.stub_cuda:
        # A CPU build of torch has no libtorch_cuda to link against. An empty library of that name
        # is enough: the symbols are resolved when the library is loaded.
        stub = temporary / "libtorch_cuda.so"
        source = temporary / "empty.cpp"
        source.write_text("")
        name = "-Wl,-soname,libtorch_cuda.so"
        _run(library, [find_cxx() or "c++", "-shared", name, str(source), "-o", str(stub)])
        link.insert(0, f"-L{temporary}")
    # Linked elsewhere, then moved into place: a process that has loaded the old file keeps it.
    fresh = temporary / target.name
    _run(library, [library.compiler, "-shared", *objects, "-o", str(fresh), *link])
    partial = target.with_suffix(".partial")
    shutil.copyfile(fresh, partial)
    partial.replace(target)


def _run(library: Library, command: list[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.stdout:
        print(result.stdout)
    if result.returncode != 0:
        variable = {"_C": "CEKERNELS_BUILD_CPP", "_C_cuda": "CEKERNELS_BUILD_CUDA"}[library.name]
        raise BuildError(
            f"cekernels.{library.name} cannot be compiled; {variable}=0 installs without it.\n"
            f"{shlex.join(command)}\n{result.stdout}"
        )


if __name__ == "__main__":  # recompile in an editable installation
    build(ROOT / "cekernels", keep=False)
