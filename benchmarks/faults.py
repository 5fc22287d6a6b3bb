"""Kill a run at random moments and resume it: is the store always the one of a run that was left in peace?

    python benchmarks/faults.py SLIDE --kills 20 --work DIR [--workers 2]

Each round starts ``nucleipan segment`` in a process group of its own, kills it (SIGKILL) after a random time,
starts it again, and again, until it ends by itself; with ``--workers`` single worker processes are killed instead of
everything in every second round. Arrays and table are then compared byte by byte. Exit code 1 if any differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

#: What counts as a kill; a run that had ended before is another round.
_KILLED = ("killed", "worker killed")
_NUCLEIPAN = [sys.executable, "-c", "from nucleipan.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    began = time.perf_counter()
    expected = digest(finish(args, "reference"))
    duration = time.perf_counter() - began
    n_kills = n_wrong = 0
    while n_kills < args.kills:
        only_worker = args.workers > 1 and n_kills % 2 == 1
        after = rng.uniform(0.05, 1.0) * duration
        began, process = time.perf_counter(), start(args, "killed")
        what = kill(process, after, only_worker)
        store = finish(args, "killed", process if only_worker else None)
        is_same = digest(store) == expected
        n_wrong += not is_same
        if what in _KILLED:
            n_kills += 1
        else:  # the undisturbed run was slower than this one
            duration = min(duration, time.perf_counter() - began)
        print(f"{n_kills:3d}: {what} after {after:5.1f} s: {'same store' if is_same else 'ANOTHER STORE'}", flush=True)
        shutil.rmtree(args.work / "killed")
    print(f"{n_kills} kills, {n_wrong} other stores ({duration:.1f} s undisturbed)")
    sys.exit(1 if n_wrong else 0)


def start(args: argparse.Namespace, name: str) -> subprocess.Popen:
    options = ["--tile", str(args.tile), "--workers", str(args.workers)]
    command = [*_NUCLEIPAN, "segment", str(args.slide), "--out", str(args.work / name), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(process: subprocess.Popen, after: float, only_worker: bool) -> str:
    time.sleep(after)
    if not only_worker:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "killed"
        return "had ended"
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    workers = [c for c in children if "spawn_main" in " ".join(c.cmdline())]
    if not workers:
        return "no worker yet"
    workers[-1].kill()
    return "worker killed"


def finish(args: argparse.Namespace, name: str, process: subprocess.Popen | None = None) -> Path:
    """Let ``process`` end, or run until a run ends by itself."""
    process = process or start(args, name)
    if process.wait() != 0:
        raise SystemExit(f"a run that was not disturbed ended with {process.returncode}")
    return args.work / name / f"{args.slide.stem}.ome.zarr"


def digest(store: Path) -> dict[str, str]:
    """SHA-256 of everything in the store."""
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(store.rglob("*"))
        if p.is_file()
    }


if __name__ == "__main__":
    main()
