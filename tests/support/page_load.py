"""`make page-load`: many visitors of the page at once, each with two songs and a composition; what each waits for."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from page_server import Server, Visitor, serving, small_checkpoint, write_song


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, help="default: a whole-sized agent, never trained")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = options.checkpoint or small_checkpoint(
            folder / "whole.safetensors", clip=24.0, window=16.0, component_dim=64
        )
        a, b = (write_song(folder / f"{letter}.wav", 60.0, seed=seed) for seed, letter in enumerate("ab"))
        began = time.monotonic()
        with serving("--checkpoint", checkpoint, "--uploads", folder / "up") as server:
            print(f"started in {time.monotonic() - began if server.url else 0:.1f} s, {server.memory() >> 20} MiB")
            visit(server.url, a, b)
            alone = visit(server.url, a, b)
            print(f"one visitor alone: songs read in {alone[0]:.1f} s, composed in {alone[1]:.1f} s")
            measure(server, options.visitors, a, b)


def visit(url: str, a: Path, b: Path) -> tuple[float, float]:
    """Seconds until both songs were read, and from there until the pattern was there."""
    one = Visitor(url, timeout=3600)
    began = time.monotonic()
    songs = one.give("Song A", a), one.give("Song B", b)
    read = time.monotonic()
    shown = one.compose(*songs)
    if "The pattern" not in shown[0]:
        raise SystemExit(f"a visitor failed: {shown[0]}")
    return read - began, time.monotonic() - read


def measure(server: Server, visitors: int, a: Path, b: Path) -> None:
    most, done = [server.memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            most[0] = max(most[0], server.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    with ThreadPoolExecutor(visitors) as crowd:
        times = list(crowd.map(lambda _: visit(server.url, a, b), range(visitors)))
    done.set()
    watcher.join()
    print(f"{visitors} visitors at once, none failed, all done after {time.monotonic() - began:.1f} s")
    print(f"{'':<22}{'median':>8}{'worst':>8}   (s)")
    for name, values in zip(("both songs read", "pattern composed"), zip(*times, strict=True), strict=True):
        print(f"{name:<22}{statistics.median(values):>8.1f}{max(values):>8.1f}")
    print(f"memory at most {most[0] >> 20} MiB")


if __name__ == "__main__":
    main()
