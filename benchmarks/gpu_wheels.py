"""Leave in a wheel of bitsandbytes the libraries of one CUDA alone; called by benchmarks/gpu.sh.

    python benchmarks/gpu_wheels.py FOLDER CUDA

It brings a library for every CUDA, 60 MB in all, and loads one. CUDA is a number such as 130.
"""

import re
import sys
import zipfile
from pathlib import Path

_LIBRARY = re.compile(r"libbitsandbytes_(?:cuda|rocm|xpu)(\w*)\.so")


def trim(wheel: Path, cuda: str) -> None:
    """Rewrite ``wheel`` without the libraries of other machines, and without their records."""
    partial = wheel.with_suffix(".partial")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        found = {item.filename: _LIBRARY.search(item.filename) for item in old.infolist()}
        dropped = {name for name, match in found.items() if match and match[1] != cuda}
        if len(dropped) == sum(match is not None for match in found.values()):
            sys.exit(f"{wheel}: has no library of CUDA {cuda}; it has {sorted(dropped)}")
        for name in found.keys() - dropped:
            content = old.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                kept = [line for line in lines if line.partition(",")[0] not in dropped]
                content = "".join(kept).encode()
            new.writestr(name, content)
    partial.replace(wheel)


if __name__ == "__main__":
    for path in Path(sys.argv[1]).glob("bitsandbytes-*.whl"):
        trim(path, sys.argv[2])
