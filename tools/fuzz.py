"""Look for calls of the native kernels that break them: libFuzzer over zoo/native/tests/fuzz.cpp and its corpus.

    python tools/fuzz.py --seconds 300

Needs clang with its runtime library. The corpus is one file, each input with its length before it (two bytes, little
endian); what a run adds to it is what reaches code that nothing else in it reaches. `make sanitize` runs all of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "zoo" / "native" / "tests" / "fuzz.corpus"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="how long to look")
    arguments = parser.parse_args()
    clang = shutil.which("clang++")
    if clang is None:
        print("fuzzing needs clang++ with libclang-rt", file=sys.stderr)
        return 1
    build = ROOT / "build" / "fuzz"
    options = [f"-DCMAKE_CXX_COMPILER={clang}", "-DCMAKE_BUILD_TYPE=Release", "-DZOO_SANITIZE=address,undefined,fuzzer"]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build, "--parallel"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place, "before"), Path(place, "after")
        before.mkdir()
        after.mkdir()
        unpack(CORPUS, before)
        run = [
            build / "fuzz",
            "-max_len=256",
            f"-max_total_time={arguments.seconds}",
            f"-artifact_prefix={build}/",
            before,
        ]
        if subprocess.run(run, env=os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=16"}).returncode:
            print(f"what broke it is in {build}", file=sys.stderr)
            return 1
        # what reaches an edge, not how often: else the corpus has thousands of inputs
        subprocess.run([build / "fuzz", "-merge=1", "-use_counters=0", "-max_len=256", after, before], check=True)
        pack(after, CORPUS)
    return 0


def unpack(corpus: Path, folder: Path) -> None:
    data = corpus.read_bytes() if corpus.is_file() else b""
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<H", data, at)
        (folder / f"{at:08d}").write_bytes(data[at + 2 : at + 2 + size])
        at += 2 + size


def pack(folder: Path, corpus: Path) -> None:
    inputs = sorted((path.read_bytes() for path in folder.iterdir()), key=lambda data: (len(data), data))
    corpus.write_bytes(b"".join(struct.pack("<H", len(data)) + data for data in inputs))


if __name__ == "__main__":
    sys.exit(main())
