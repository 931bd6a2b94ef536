#!/usr/bin/env python3
"""Compiles cuda/*.cu into ptx/*.ptx and measures what ptxas makes of them.

    python tools/ptx.py                 compile every file whose sources changed
    python tools/ptx.py rmsnorm rope    these stems alone
    python tools/ptx.py --check         compile everything again and compare with what is committed
    python tools/ptx.py --report        assemble for sm_80, 86, 89, 90 and write ptx/REPORT.md

A file whose stem ends in _sm90a uses what Hopper alone has: it is compiled for compute_90a, assembled for sm_90a, and
its registers stand in the report's column sm_90.

Users need none of this: the PTX is committed and the driver compiles it. The compiler comes from PyPI, pinned in
tools/requirements-ptx.txt: NVRTC 12.1, because its PTX is `.version 8.1`, which every driver since 530 takes; and
a newer ptxas, which sees whether all listed GPUs take it. With LATCH_CUDA_PYTHON unset, the script makes a virtual
environment under target/ptx-venv and installs them there.

Each PTX file opens with a line `// sources <hash>`: SHA-256 over the compiler's version, its flags, and the bytes of
cuda/<stem>.cu and of the headers of cuda/ that it includes, directly or not. A test of the crate recomputes it and names a file that is stale.
"""
import argparse
import ctypes
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA, PTX = ROOT / "cuda", ROOT / "ptx"
COMPILER = "nvrtc 12.1.105"
TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90"]


def is_hopper(stem):
    return stem.endswith("_sm90a")


def flags(stem):
    architecture = "compute_90a" if is_hopper(stem) else "compute_80"
    return [f"--gpu-architecture={architecture}", "--std=c++17"]


def targets(stem):
    """Columns of the report that a file has numbers for, and the architecture that ptxas assembles it for."""
    return {"sm_90": "sm_90a"} if is_hopper(stem) else {target: target for target in TARGETS}


def site_packages():
    """The folder that holds `nvidia/`; made first where it is missing."""
    python = os.environ.get("LATCH_CUDA_PYTHON")
    if python is None:
        home = ROOT / "target" / "ptx-venv"
        python = home / "bin" / "python"
        if not python.exists():
            print(f"installing the compiler into {home}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
        requirements = ROOT / "tools" / "requirements-ptx.txt"
        stamp = home / "installed"
        if not stamp.exists() or stamp.read_text() != requirements.read_text():
            subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
            stamp.write_text(requirements.read_text())
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())


def sources(stem):
    """cuda/<stem>.cu and the headers of ours that it includes, directly or not, each once, in order of name."""
    found, open_files = set(), [CUDA / f"{stem}.cu"]
    while open_files:
        path = open_files.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'^#include "(.+)"', path.read_text(), re.M)
            open_files.extend(CUDA / name for name in names)
    return sorted(found, key=lambda path: path.name)


def sources_hash(stem):
    """SHA-256 over what determines the output."""
    digest = hashlib.sha256()
    digest.update((COMPILER + " " + " ".join(flags(stem))).encode())
    for path in sources(stem):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Nvrtc:
    """The run-time compiler's library."""

    def __init__(self, site):
        self.include = site / "nvidia" / "cuda_runtime" / "include"
        self.library = ctypes.CDLL(str(site / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"))

    def compile(self, path):
        """PTX of one file; the compiler's log is printed when it has anything to say."""
        library, program = self.library, ctypes.c_void_p()
        source = path.read_bytes()
        library.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 0, None, None)
        options = [f.encode() for f in [*flags(path.stem), f"-I{CUDA}", f"-I{self.include}"]]
        array = (ctypes.c_char_p * len(options))(*options)
        failed = library.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        if log.value.strip():
            print(log.value.decode(), file=sys.stderr)
        if failed:
            raise SystemExit(f"{path}: NVRTC stopped with code {failed}")
        library.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        library.nvrtcGetPTX(program, ptx)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return ptx.value.decode()


def rendered(stem, ptx):
    """The committed form: a header of ours, then the compiler's text without its own comments."""
    body = "\n".join(line for line in ptx.splitlines() if not line.startswith("//"))
    return f"// sources {sources_hash(stem)}\n// from cuda/{stem}.cu by tools/ptx.py ({COMPILER})\n{body.strip()}\n"


def is_fresh(stem):
    path = PTX / f"{stem}.ptx"
    return path.exists() and path.read_text().startswith(f"// sources {sources_hash(stem)}\n")


def report(site, stems):
    """Registers, shared memory and spills of every kernel on every target; spills end with a message."""
    ptxas = site / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
    rows, spilled = {}, []
    for stem in stems:
        for target, architecture in targets(stem).items():
            command = [ptxas, "-v", f"-arch={architecture}", PTX / f"{stem}.ptx", "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"ptxas refuses ptx/{stem}.ptx for {architecture}:\n{done.stderr}")
            if "Potential Performance Loss" in done.stderr:
                raise SystemExit(f"ptxas runs products of ptx/{stem}.ptx one after the other:\n{done.stderr}")
            for entry, stack, spill, rest in re.findall(
                r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (.*?)\n",
                done.stderr,
                re.S,
            ):
                registers = re.search(r"(\d+) registers", rest)
                shared = re.search(r"(\d+) bytes smem", rest)
                rows.setdefault((stem, entry), {})[target] = (
                    int(registers[1]), int(shared[1]) if shared else 0, int(stack), int(spill)
                )
                if int(spill):
                    spilled.append(f"{entry} on {target}: {spill} bytes")
    lines = [
        "# What ptxas makes of each kernel",
        "",
        "Made by `tools/ptx.py --report` (ptxas 12.9.86). Registers a thread on each target; static shared memory,",
        "stack and spill stores in bytes, the largest over the targets. A file of `_sm90a` is for that target alone; its",
        "registers stand under sm_90.",
        "",
        "| file | kernel | " + " | ".join(TARGETS) + " | shared | stack | spills |",
        "|---|---|" + "---|" * (len(TARGETS) + 3),
    ]
    for (stem, entry), found in sorted(rows.items()):
        registers = [str(found[t][0]) if t in found else "-" for t in TARGETS]
        worst = [str(max(of_target[i] for of_target in found.values())) for i in (1, 2, 3)]
        lines.append(f"| {stem} | {entry} | " + " | ".join(registers + worst) + " |")
    (PTX / "REPORT.md").write_text("\n".join(lines) + "\n")
    print(f"ptx/REPORT.md: {len(rows)} kernels; spills: {', '.join(spilled) or 'none'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="*", help="files of cuda/ without .cu; default: all")
    parser.add_argument("--check", action="store_true", help="compile again and compare; write nothing")
    parser.add_argument("--report", action="store_true", help="write ptx/REPORT.md")
    arguments = parser.parse_args()
    stems = arguments.stems or sorted(path.stem for path in CUDA.glob("*.cu"))
    site = site_packages()
    if arguments.report:
        return report(site, stems)
    compiler, stale = Nvrtc(site), []
    for stem in stems:
        if not arguments.check and is_fresh(stem):
            continue
        text, path = rendered(stem, compiler.compile(CUDA / f"{stem}.cu")), PTX / f"{stem}.ptx"
        if not arguments.check:
            path.write_text(text)
            print(f"ptx/{stem}.ptx: {text.count('.entry')} kernels")
        elif not path.exists() or path.read_text() != text:
            stale.append(stem)
    if stale:
        raise SystemExit(f"stale: {', '.join(stale)}; run python tools/ptx.py and commit ptx/")
    if arguments.check:
        left = sorted(p.stem for p in PTX.glob("*.ptx") if not (CUDA / f"{p.stem}.cu").exists())
        if left and not arguments.stems:
            raise SystemExit(f"ptx/ holds files without a source: {', '.join(left)}")
        print(f"{len(stems)} files are what their sources compile to")


if __name__ == "__main__":
    main()
