"""What `import zoo` adds to a bare interpreter, and how long `zoo list` takes: medians of processes run in turn.

python benchmarks/bench_startup.py [--rounds 21]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from common import interleaved, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds

    def process(*args: str):
        return lambda: subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)

    medians = interleaved(
        {
            "bare interpreter": process("-c", "pass"),
            "import zoo": process("-c", "import zoo"),
            "zoo list": process("-m", "zoo", "list"),
        },
        rounds,
    )
    result = {name: round(seconds * 1e3, 1) for name, seconds in medians.items()}
    result["import zoo adds"] = round(result["import zoo"] - result["bare interpreter"], 1)
    for name, ms in result.items():
        print(f"{name:18s} {ms:7.1f} ms")
    print("written to", record("startup", result).name)


if __name__ == "__main__":
    main()
