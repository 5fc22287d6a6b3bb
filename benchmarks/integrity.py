"""Is damage to a store found? Random damage of many kinds, one at a time, and what is said of it.

    python benchmarks/integrity.py --work DIR [--n 2000] [--nuclei 10000]

A synthetic store is drawn once and kept in DIR; every damage is made good again before the next. Printed are:
what listing, checking and verifying the undamaged store cost (its memory is right in a run that need not draw it); how
many of each kind of damage the checksums find and name; how many contradictions between table and raster are found when
the checksums are made anew after them; and what somebody notices who reads labels and table without looking at
checksums. Exit code 1 if something was not found.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from exports import write_store

from nucleipan.errors import StoreError
from nucleipan.exports import export_store
from nucleipan.store import CHECKSUMS, PanopticStore, damaged_files, refuse_damaged
from nucleipan.store.checksums import write_checksums
from nucleipan.verify import verify_store

SIDE_NUCLEI = 64**2  # of one square of the synthetic store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=2000, help="damages of each kind of file damage")
    parser.add_argument("--nuclei", type=int, default=10_000, help="about so many")
    args = parser.parse_args()
    path = args.work / f"integrity_{args.nuclei}.ome.zarr"
    if not path.exists():
        n_squares = max(1, round(args.nuclei / SIDE_NUCLEI))
        n_down = math.isqrt(n_squares)
        write_store(path, n_down, math.ceil(n_squares / n_down))
    costs(path)
    rng = np.random.default_rng(0)
    n_missed = files(path, args.n, rng) + contents(path, args.n // 20, rng) + exports(path, args.n // 20, rng)
    reading(path, args.n, rng)
    sys.exit(1 if n_missed else 0)


# Damage to files


def flip(data: bytearray, rng: np.random.Generator) -> None:
    bit = int(rng.integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    """A sector with something else in it."""
    start = int(rng.integers(len(data)))
    data[start : start + 512] = b"\1" * len(data[start : start + 512])


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def grow(data: bytearray, rng: np.random.Generator) -> None:
    data.extend(rng.bytes(int(rng.integers(1, 100))))


def exchange(data: bytearray, rng: np.random.Generator) -> None:
    """Two bytes change places."""
    i, j = rng.integers(len(data), size=2)
    while data[i] == data[j]:
        i, j = rng.integers(len(data), size=2)
    data[i], data[j] = data[j], data[i]


def files(path: Path, n: int, rng: np.random.Generator) -> int:
    """Returns how many were not found, or not named."""
    all_files = sorted(p for p in path.rglob("*") if p.is_file())
    kinds: dict[str, Callable[[bytearray, np.random.Generator], None] | None] = {
        "one bit": flip, "two bytes exchanged": exchange, "512 bytes overwritten": overwrite, "cut short": cut,
        "grown": grow, "missing": None,
    }  # fmt: skip
    n_missed = 0
    print("file damage              tried  found and named")
    for kind, harm in kinds.items():
        n_found = 0
        for _ in range(n):
            victim = all_files[int(rng.integers(len(all_files)))]
            before = victim.read_bytes()
            if harm is None:
                victim.unlink()
            else:
                data = bytearray(before)
                harm(data, rng)
                victim.write_bytes(data)
            n_found += [f.file for f in damaged_files(path)] == [victim.relative_to(path).as_posix()]
            victim.write_bytes(before)
        n_missed += n - n_found
        print(f"{kind:24s} {n:5d}  {n_found:5d}")
    return n_missed


# Contradictions under right checksums


def contents(path: Path, n: int, rng: np.random.Generator) -> int:
    """Returns how many were not found."""
    kinds = {"row deleted": row_deleted, "class changed": class_changed, "id changed": id_changed,
             "pixel changed": pixel_changed, "coarse pixel changed": coarse_changed}  # fmt: skip
    n_missed = 0
    print("\ncontradiction            tried  found")
    for kind, harm in kinds.items():
        n_found = 0
        for _ in range(n):
            copy = Path(shutil.copytree(path, path.with_name("copy.ome.zarr")))
            harm(copy, rng)
            write_checksums(copy)
            n_found += len(verify_store(copy).findings) > 0
            shutil.rmtree(copy)
        n_missed += n - n_found
        print(f"{kind:24s} {n:5d}  {n_found:5d}")
    return n_missed


def rewrite(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path / "nuclei.parquet", compression="zstd", compression_level=1)


def row_deleted(path: Path, rng: np.random.Generator) -> None:
    table = pq.read_table(path / "nuclei.parquet")
    row = int(rng.integers(table.num_rows))
    rewrite(path, pa.concat_tables([table.slice(0, row), table.slice(row + 1)]))


def class_changed(path: Path, rng: np.random.Generator) -> None:
    """Number and name."""
    table = pq.read_table(path / "nuclei.parquet")
    row, names = int(rng.integers(table.num_rows)), {c.id: c.name for c in PanopticStore.open(path).classes.things}
    ids = table["class_id"].to_numpy().copy()
    ids[row] = ids[row] % len(names) + 1
    classes = pa.array([names[i] for i in ids.tolist()]).dictionary_encode().cast(table.schema.field("class").type)
    for name, values in (("class_id", pa.array(ids)), ("class", classes)):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    rewrite(path, table)


def id_changed(path: Path, rng: np.random.Generator) -> None:
    table = pq.read_table(path / "nuclei.parquet")
    ids = table["id"].to_numpy().copy()
    ids[int(rng.integers(len(ids)))] += np.uint32(rng.integers(1, 1000))
    rewrite(path, table.set_column(table.column_names.index("id"), table.schema.field("id"), pa.array(ids)))


def pixel_changed(path: Path, rng: np.random.Generator, level: int = 0) -> None:
    """To the id of some other nucleus."""
    array = zarr.open_array(str(path / "labels/nuclei" / str(level)))
    y, x = (int(rng.integers(side)) for side in array.shape)
    array[y, x] = int(array[y, x]) % PanopticStore.open(path).n_nuclei + 1


def coarse_changed(path: Path, rng: np.random.Generator) -> None:
    pixel_changed(path, rng, 1)


def exports(path: Path, n: int, rng: np.random.Generator) -> int:
    """Returns how many exports of a store with a changed bit were not refused, or left something."""
    all_files, out, n_refused = sorted(p for p in path.rglob("*") if p.is_file()), path.with_name("exported"), 0
    store = PanopticStore.open(path)
    for k in range(n):
        victim = all_files[int(rng.integers(len(all_files)))]
        before = victim.read_bytes()
        data = bytearray(before)
        flip(data, rng)
        victim.write_bytes(data)
        try:
            export_store(store, ("geojson", "csv", "parquet", "ome-tiff")[k % 4], out / "nuclei")
        except StoreError:
            n_refused += not out.exists()
        shutil.rmtree(out, ignore_errors=True)
        victim.write_bytes(before)
    print(f"\nexports refused, nothing left: {n_refused} of {n}")
    return n - n_refused


# Without checksums


def reading(path: Path, n: int, rng: np.random.Generator) -> None:
    """One bit at a time, in files that hold nuclei: is it noticed, has it changed what is read, or neither?"""
    print("\nreading alone, one bit   tried  noticed  changed  harmless")
    for name in ("labels/nuclei/0", "labels/classes/0"):
        shards = sorted((path / name / "c").rglob("*/*"))
        read = partial(_shard, path / name)
        report(name, Counter(_read_flipped(shards[int(rng.integers(len(shards)))], read, rng) for _ in range(n)))
    table = path / "nuclei.parquet"
    report(table.name, Counter(_read_flipped(table, partial(_table, path), rng) for _ in range(n // 10)))


def report(name: str, seen: Counter[str]) -> None:
    counts = "  ".join(f"{seen[what]:7d}" for what in ("noticed", "changed", "harmless"))
    print(f"{name:24s} {seen.total():5d}  {counts}")


def _read_flipped(victim: Path, read: Callable[[], object], rng: np.random.Generator) -> str:
    before, expected = victim.read_bytes(), read()
    data = bytearray(before)
    flip(data, rng)
    victim.write_bytes(data)
    try:
        return "harmless" if read() == expected else "changed"
    except Exception:  # zarr's and Arrow's own, whatever they are
        return "noticed"
    finally:
        victim.write_bytes(before)


def _shard(path: Path) -> bytes:
    return bytes(zarr.open_array(str(path), mode="r")[...].tobytes())


def _table(path: Path) -> pa.Table:
    return PanopticStore.open(path).nuclei()


def costs(path: Path) -> None:
    megapixels = PanopticStore.open(path).shape[0] * PanopticStore.open(path).shape[1] / 1e6
    n_bytes = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    print(f"{megapixels:,.0f} Mpx, {PanopticStore.open(path).n_nuclei:,} nuclei, {n_bytes / 2**20:,.0f} MiB")
    actions: dict[str, Callable[[Path], object]] = {
        "write_checksums": write_checksums, "refuse_damaged": refuse_damaged, "open": PanopticStore.open,
        "verify_store": verify_store,
    }  # fmt: skip
    for name, action in actions.items():
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            action(path)
            seconds.append(time.perf_counter() - began)
        print(f"{name:24s} {min(seconds):8.3f} s  {1e3 * min(seconds) / megapixels:8.3f} ms/MP")
    print(f"{(path / CHECKSUMS).stat().st_size:,} bytes of checksums, peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB\n")  # fmt: skip


if __name__ == "__main__":
    main()
