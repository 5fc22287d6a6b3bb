"""Can a file take the program over, crash it, hang it or fill the memory? Small valid files made wrong, many times.

    python benchmarks/fuzz.py open-slide --count 2000 [--seed 0] [--keep DIR]
    python benchmarks/fuzz.py all --seconds 600

A target makes valid files on the spot (see ``fuzz_files``); each input is one of them with one to four things wrong
(``fuzz_mutations``) and is read in a process of its own, with 4 GB of address space and 10 s of processor time, so that
a busy machine changes nothing (and 120 s by the clock, for what waits). What may come of it:

    read      it was read: what was changed did not matter, or cannot be told from a picture
    refused   an error of nucleipan, on one line
    foreign   an error of something else, which somebody would see as a traceback
    memory    more than 2 GB, or none left
    hang      more time than that
    crash     the process died

All but the first two are failures: they are printed, kept in DIR, and the exit code is 1. The same seed gives the same
inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

from fuzz_files import TARGETS, Read
from fuzz_mutations import mutate_one_file

from nucleipan.errors import NucleipanError

LIMIT_CPU_S, LIMIT_S, LIMIT_BYTES, ADDRESS_SPACE = 10, 120, 2 * 10**9, 4 << 30
GOOD = ("read", "refused")
OUTCOMES = (*GOOD, "foreign", "memory", "hang", "crash")


@dataclass(frozen=True)
class Verdict:
    """What came of one input; ``what`` says more of all but "read"."""

    outcome: str
    what: str = ""
    cpu_s: float = 0.0
    peak_bytes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--count", type=int, help="inputs for each target; 1000 if no --seconds are given")
    parser.add_argument("--seconds", type=float, help="stop after so many, shared by all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz", help="for what failed")
    args = parser.parse_args()
    names = list(TARGETS) if args.target == "all" else [args.target]
    count = args.count or (sys.maxsize if args.seconds else 1000)
    print(f"{'target':15s} {'inputs':>7s} " + " ".join(f"{o:>8s}" for o in OUTCOMES) + "  most CPU  most memory")
    is_good = [fuzz(n, count, (args.seconds or 1e9) / len(names), args.seed, args.keep) for n in names]
    sys.exit(not all(is_good))


def fuzz(name: str, count: int, seconds: float, seed: int, keep: Path) -> bool:
    """Whether nothing failed."""
    target = TARGETS[name]()
    began, counts, seen, slowest, most = time.monotonic(), Counter[str](), Counter[str](), 0.0, 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as work:
        # Made in another process: what starts threads must not run in the one that forks.
        maker = get_context("fork").Process(target=target.make, args=(Path(work) / "seeds",))
        maker.start()
        maker.join()
        seeds = sorted((Path(work) / "seeds").iterdir())
        for i in range(count):
            if time.monotonic() - began > seconds:
                break
            random = Random(f"{name} {seed} {i}")
            case = _copied(random.choice(seeds), Path(work) / "case")
            mutate_one_file(case, random)
            verdict = judged(target.read, case)
            counts[verdict.outcome] += 1
            slowest, most = max(slowest, verdict.cpu_s), max(most, verdict.peak_bytes)
            if verdict.outcome not in GOOD:
                seen[verdict.what] += 1
                if seen[verdict.what] <= 3:
                    _copied(case, keep / f"{name}-{seed}-{i}")
                if seen[verdict.what] == 1:
                    print(f"  {name} {i} {verdict.outcome}: {verdict.what}", file=sys.stderr, flush=True)
    figures = " ".join(f"{counts[o]:8d}" for o in OUTCOMES)
    print(f"{name:15s} {counts.total():7d} {figures} {slowest:7.1f} s {most / 1e9:9.2f} GB", flush=True)
    return not seen


def judged(read: Read, path: Path) -> Verdict:
    """``read(path)`` in a process of its own."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        _run(read, path, sender)
    os.close(sender)
    is_done = bool(select.select([receiver], [], [], LIMIT_S)[0])
    said = os.read(receiver, 1 << 16) if is_done else b""
    os.close(receiver)
    if not is_done:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    if not is_done:
        return Verdict("hang", f"waits, after {LIMIT_S} s", seconds, peak)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Verdict("hang", f"more than {LIMIT_CPU_S} s of processor time", seconds, peak)
    if not said:
        return Verdict("crash", f"status {status}", seconds, peak)
    outcome, what = json.loads(said)
    if peak > LIMIT_BYTES:
        outcome, what = "memory", f"{peak / 1e9:.1f} GB, then {outcome}: {what}"
    return Verdict(outcome, what, seconds, peak)


def _run(read: Read, path: Path, sender: int) -> None:
    """In the child: never returns."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU_S, LIMIT_CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
    warnings.simplefilter("ignore")
    try:
        read(path)
        said = ("read", "")
    except NucleipanError as error:
        said = (
            ("refused", str(error)[:500]) if _is_clean(str(error)) else ("foreign", f"not clean: {str(error)[:300]!r}")
        )
    except MemoryError as error:
        said = ("memory", _where(error))
    except BaseException as error:
        said = ("foreign", _where(error))
    os.write(sender, json.dumps(said).encode())
    os._exit(0)


def _is_clean(message: str) -> bool:
    return "\n" not in message and len(message) < 3000


def _where(error: BaseException) -> str:
    """The kind of an error and the last place in nucleipan that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((f for f in reversed(frames) if "/nucleipan/" in f.filename), frames[-1])
    place = f"{Path(own.filename).name}:{own.lineno} {own.name}"
    return f"{type(error).__name__}: {str(error)[:100]!r} at {place}"


def _copied(source: Path, target: Path) -> Path:
    """A copy in the empty folder ``target``, under the same name."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    copy = shutil.copytree if source.is_dir() else shutil.copy
    return Path(copy(source, target / source.name))


if __name__ == "__main__":
    main()
