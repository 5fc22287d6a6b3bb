"""Do the tests notice? One small change to a function at a time, and the tests that answer for it.

    pip install cosmic-ray
    python benchmarks/mutation.py [TARGET...] [--count 100] [--seed 0]
    python benchmarks/mutation.py --again LOG        those that survived in what an earlier run printed

cosmic-ray knows the changes: another operator, another comparison, a number one more or less, a condition turned round,
a loop that does not run. Of those possible at one place one is tried; ``--count`` places of each target are drawn, the
same for the same seed. A change is *killed* if a test fails, or takes much longer than it should, and has *survived*
otherwise: a test is missing, or the code says more than it must, or the change makes no difference.

Nothing is written. Tests are collected and run once as things are; for each change a forked process puts other code
into the functions that are there and runs the tests anew, the quickest first, until one fails. So a change costs a
fraction of a second. What is changed is interpreted, not compiled by numba; tests that are too slow then are left out.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import os
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random
from types import CodeType, FunctionType

import numba
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
#: Decorators are about types and speed; the others do nothing, or ask for names.
LEFT_OUT = ("core/RemoveDecorator", "core/NoOp", "core/VariableReplacer", "core/VariableInserter")
#: Costly to import, and common to targets.
PRELOADED = ("monai.networks.nets", "pyarrow.parquet", "scipy.optimize", "shapely", "torch", "zarr")
PYTEST_ARGS = ("-q", "-s", "-n", "0", "--no-header", "-p", "no:cacheprovider", "-p", "no:warnings")


@dataclass(frozen=True)
class Target:
    """Modules, and arguments of pytest for the tests that answer for them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


# Left out are tests that take long without compiled code, and those that start processes.
TARGETS = {
    "stitch": Target(
        ("stitch/*",),
        ("tests/test_stitch.py", "tests/test_stitch_seams.py", "-k",
         "(seams and not noisy and not thousand) or empty or disk or shrinks or planes or pyramid or 256-32 or flip"),
    ),
    "voting": Target(("network/voting/*",), ("tests/test_voting.py",)),
    "fusion": Target(
        ("network/fusion", "network/islands", "network/coarse"),
        ("tests/test_fusion.py", "tests/test_confidence.py", "tests/test_regions.py", "-k",
         "fusion or decoding or true_masks or surer_tissue"),
    ),
    "painting": Target(("network/painting",), ("tests/test_regions.py", "-k", "painting or true_masks")),
    "confidence": Target(
        ("network/confidence",), ("tests/test_confidence.py", "-k", "not after_fitting and not tell_nothing")
    ),
    "overlaps": Target(
        ("metrics/overlaps", "metrics/quality", "metrics/jaccard", "metrics/assignment"),
        ("tests/test_metrics.py", "tests/test_metrics_detection.py", "tests/test_evaluate_panoptic.py", "-k",
         "not torchmetrics and not memory and not large_map and not example and not files and not pastis"),
    ),
    "detection": Target(("metrics/detection", "metrics/tissue"), ("tests/test_metrics_detection.py",)),
    "evaluation": Target(
        ("metrics/evaluation", "metrics/report", "metrics/scoring", "metrics/panoptic_evaluation", "metrics/grids"),
        ("tests/test_metrics_papers.py", "tests/test_evaluate.py", "tests/test_evaluate_panoptic.py", "-k",
         "not torchmetrics and not stitched_store and not torch and not pastis and not example"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """The ``occurrence``-th change that an operator of cosmic-ray can make to a file."""

    target: str
    path: str
    line: int
    operator: str
    occurrence: int

    def source(self) -> str:
        return mutate_code((ROOT / self.path).read_text(), get_operator(self.operator)(), self.occurrence)

    def difference(self) -> str:
        """Lines taken away, and what is in their place."""
        before, after = (ROOT / self.path).read_text().splitlines(), self.source().splitlines()
        lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        return "\n".join("    " + line for line in lines if line[0] in "+-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--count", type=int, default=100, help="places of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, metavar="LOG", help="instead, what survived there")
    args = parser.parse_args()
    os.chdir(ROOT)
    warnings.simplefilter("ignore")
    for module in PRELOADED:
        importlib.import_module(module)
    again = survivors(args.again) if args.again else None
    for name in args.targets or TARGETS:
        mutants = drawn(name, args.count, Random(args.seed)) if again is None else again.get(name, [])
        # In a process of its own, as modules are interpreted there that are compiled for others.
        process = get_context("fork").Process(target=try_all, args=(name, mutants))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"the tests of {name} fail as things are")


# What to change


def drawn(name: str, count: int, random: Random) -> list[Mutant]:
    """One change at each of ``count`` places, in the order of the source."""
    places: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    for path in sorted({p for m in TARGETS[name].modules for p in (ROOT / "nucleipan").glob(m + ".py")}):
        for where, mutant in possible(name, path):
            places.setdefault((mutant.path, where), []).append(mutant)
    chosen: list[Mutant] = []
    for mutants in random.sample(list(places.values()), len(places)):
        mutant = random.choice(mutants)
        if len(chosen) < count and new_code(mutant):
            chosen.append(mutant)
    return sorted(chosen, key=lambda m: (m.path, m.line))


def possible(name: str, path: Path) -> Iterator[tuple[tuple[int, int], Mutant]]:
    nodes = list(ast_nodes(get_ast(path.read_text())))
    for operator in operator_names():
        # "is" is for None, of which no other comparison means anything.
        if operator in LEFT_OUT or ("_Is" in operator and not operator.endswith(("_Is_IsNot", "_IsNot_Is"))):
            continue
        starts = (start for node in nodes for start, _ in get_operator(operator)().mutation_positions(node))
        for occurrence, start in enumerate(starts):
            yield start, Mutant(name, path.relative_to(ROOT).as_posix(), start[0], operator, occurrence)


@cache
def new_code(mutant: Mutant) -> dict[tuple[str, int], CodeType]:
    """The code of functions that is another than before; none of annotations, constants and defaults."""
    try:
        before, after = (
            functions_in(compile(source, str(ROOT / mutant.path), "exec"))
            for source in ((ROOT / mutant.path).read_text(), mutant.source())
        )
    except SyntaxError:  # not every change of an operator is Python
        return {}
    # A change of a default may move what follows it by a line, and change nothing there.
    return {key: code for key, code in after.items() if code != before.get(key, code)}


def functions_in(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """Code by qualified name and line of functions and methods; what is defined in them is in theirs."""
    found: dict[tuple[str, int], CodeType] = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            is_function = inner.co_flags & 2  # CO_NEWLOCALS; bodies of classes lack it
            found |= {(inner.co_qualname, inner.co_firstlineno): inner} if is_function else functions_in(inner)
    return found


def survivors(log: Path) -> dict[str, list[Mutant]]:
    found: dict[str, list[Mutant]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("survived "):
            _, name, path, at, operator, occurrence = line.split()
            found.setdefault(name, []).append(Mutant(name, path, int(at), operator, int(occurrence)))
    return found


# Whether it is noticed


def try_all(name: str, mutants: list[Mutant]) -> None:
    from nucleipan import measure, polygons  # noqa: F401  compiled, as they are not what is changed

    numba.config.DISABLE_JIT = True
    # One failure is enough; the same examples every time.
    settings.register_profile("mutation", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutation")
    sys.exit(pytest.main([*PYTEST_ARGS, *TARGETS[name].tests], plugins=[_EachMutant(mutants)]))


class _EachMutant:
    """Has pytest run what it has collected once, and then again in a forked process for each mutant."""

    def __init__(self, mutants: list[Mutant]) -> None:
        self._mutants = mutants

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        took: dict[pytest.Item, float] = {}
        for item in session.items:
            began = time.process_time()
            run_one(item)
            took[item] = time.process_time() - began
        if session.testsfailed:
            return True
        print(f"\n{len(took)} tests take {sum(took.values()):.1f} s", flush=True)
        trial = _Trial(
            session, sorted(took, key=took.__getitem__), functions_of_nucleipan(), 10 + 5 * sum(took.values())
        )
        tried: Counter[tuple[str, bool]] = Counter()
        for mutant in self._mutants:
            is_killed = trial.kills(mutant)
            tried[mutant.path, is_killed] += 1
            what = "killed" if is_killed else "survived"
            print(what, mutant.target, mutant.path, mutant.line, mutant.operator, mutant.occurrence, flush=True)
            if not is_killed:
                print(mutant.difference(), flush=True)
        print(f"\n{'module':36s}  killed  survived")
        for path in sorted({path for path, _ in tried}):
            print(f"{path:36s} {tried[path, True]:7d} {tried[path, False]:9d}")
        return True


@dataclass(frozen=True)
class _Trial:
    """Tests, the functions they may reach, and for how many seconds of processor time they may run."""

    session: pytest.Session
    items: list[pytest.Item]
    functions: dict[tuple[str, str, int], list[FunctionType]]
    allowed_s: float

    def kills(self, mutant: Mutant) -> bool:
        process = get_context("fork").Process(target=self._run, args=(mutant,))
        process.start()
        process.join(60 * self.allowed_s)  # by the clock, for one that waits for ever
        process.kill()
        process.join()
        return process.exitcode != 0

    def _run(self, mutant: Mutant) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(self.allowed_s), int(self.allowed_s)))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        for (name, line), code in new_code(mutant).items():
            for function in self.functions.get((str(ROOT / mutant.path), name, line), ()):
                function.__code__ = code
        for item in self.items:
            run_one(item)
            if self.session.testsfailed:
                os._exit(1)
        os._exit(0)


def functions_of_nucleipan() -> dict[tuple[str, str, int], list[FunctionType]]:
    """All there are, by file, qualified name and line."""
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__module__ and one.__module__.startswith("nucleipan"):
            code = one.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(one)
    return found


def run_one(item: pytest.Item) -> None:
    """As if it were the last: what it shares with others is made anew, by functions that may have been changed."""
    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)


if __name__ == "__main__":
    main()
