"""All benchmarks, one after the other, each with its own settings: for a machine that does nothing else.

    python tests/benchmarks

Each writes its entries into data/results; then the README's tables are made anew. The losses of ddpm.py need a data set: run it by hand.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = (
    "ddpm.py", "ddpm.py --profile", "frechet.py --threads 1", "frechet.py --threads 2",
    "unet_step.py", "parts.py", "browser.py", "../readme_page.py",
)   # fmt: skip

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()   # --help does nothing else, and an argument is refused
    for command in COMMANDS:
        print(f"== {command}", flush=True)
        subprocess.run([sys.executable, *command.split()], cwd=HERE, check=True)
