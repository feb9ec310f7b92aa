"""`make image-check`: the Dockerfile's steps, read from it, executed without an engine in roots made by debootstrap.

Each stage is a root of its own: RUN in a chroot, COPY, ENV, ARG and WORKDIR as written; then the ENTRYPOINT as its
USER, until HEALTHCHECK's command succeeds, one composition by HTTP, SIGTERM. In place of the base image stands Debian
with its own Python of the same version. Needs root. pip is configured as on this machine: what its configuration names
of local folders is mounted. `--set NAME=VALUE` sets an ARG, as `docker build --build-arg` does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from page_server import CLIP, Visitor, small_checkpoint, write_song

ROOT = Path(__file__).resolve().parents[2]
PORT = 7860
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"


@dataclass
class Stage:
    """One FROM to the next: its name, root, and what was set so far."""

    name: str
    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    folder: str = "/"
    user: str = "root"
    health: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(keyword, rest) of each, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword.upper(), rest.strip()


def chroot(stage: Stage, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    into = ["chroot", f"--userspec={stage.user}", str(stage.root), "env", "-i", f"--chdir={stage.folder}"]
    home = "HOME=/root"
    proxies = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    given = [f"{name}={value}" for name, value in stage.variables.items()]
    return subprocess.Popen([*into, home, *proxies, *pip_settings(), *given, *command], **options)


def run(stage: Stage, command: list[str]) -> None:
    if chroot(stage, command).wait() != 0:
        raise SystemExit(f"failed: {shlex.join(command)}")


def bootstrap(root: Path, mirror: str) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), mirror]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for file in (
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/ssl/certs/ca-certificates.crt",
        *glob.glob("/etc/apt/apt.conf.d/*"),
    ):
        if Path(file).exists():
            Path(root, file[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, Path(root, file[1:]))
    Path(root, "usr/local/bin/python").symlink_to("/usr/bin/python3")


@functools.cache
def pip_settings() -> list[str]:
    """This machine's configuration of pip, as environment variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)='(.*)'$", listed.stdout, flags=re.MULTILINE)
    found.sort(key=lambda setting: setting[0] == ":env:")  # which overrides files
    return [f"PIP_{name.upper().replace('-', '_')}={value}" for _, name, value in found]


def local_places() -> list[Path]:
    """The files and folders that pip's configuration names; of an index the folder around, where its packages are."""
    found = {name for setting in pip_settings() for name in re.findall(r"(?:file://|=|\s)(/[\w./-]+)", setting)}
    places = {Path(name).parent if Path(name).name == "simple" else Path(name) for name in found}
    return [place for place in sorted(places) if place.exists() and not place.is_relative_to("/etc/ssl")]


@contextlib.contextmanager
def mounted(root: Path) -> Iterator[None]:
    places = [Path("/proc"), Path("/dev"), *local_places()]
    done: list[Path] = []
    try:
        for place in places:
            target = Path(root, str(place)[1:])
            if place.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            subprocess.run(["mount", "--bind", str(place), str(target)], check=True)
            done.append(target)
            if place not in (Path("/proc"), Path("/dev")):
                subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "-l", str(target)], check=False)


def copy(stage: Stage, stages: dict[str, Stage], rest: str) -> None:
    origin = re.match(r"--from=(\S+)\s+", rest)
    *sources, target = shlex.split(rest[origin.end() :] if origin else rest)
    base = stages[origin[1]].root if origin else ROOT
    for source in sources:
        found = Path(base, source.lstrip("/"))
        into = Path(stage.root, str(Path(stage.folder, target))[1:])
        if target in (".", "./"):
            into = into / found.name
        into.parent.mkdir(parents=True, exist_ok=True)
        # of a folder its content, as COPY does
        subprocess.run(["cp", "-a", f"{found}/." if found.is_dir() else str(found), str(into)], check=True)


def build(work: Path, mirror: str, given: dict[str, str]) -> Stage:
    plain, stages = work / "plain", {}
    bootstrap(plain, mirror)
    with contextlib.ExitStack() as mounts:
        for keyword, rest in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
            print(f"== {keyword} {rest}", flush=True)
            if keyword == "FROM":
                name = rest.split()[-1] if " AS " in rest else "final"
                stage = stages[name] = Stage(name, work / name)
                subprocess.run(["cp", "-a", str(plain), str(stage.root)], check=True)
                mounts.enter_context(mounted(stage.root))
            elif keyword == "RUN":
                run(stage, ["sh", "-c", rest])
            elif keyword in ("ENV", "ARG"):
                for pair in shlex.split(rest):
                    key, _, value = pair.partition("=")
                    value = given.get(key, value) if keyword == "ARG" else value
                    stage.variables[key] = re.sub(r"\$(\w+)", lambda m: stage.variables.get(m[1], ""), value)  # noqa: B023
            elif keyword == "COPY":
                copy(stage, stages, rest)
            elif keyword == "WORKDIR":
                stage.folder = rest
                Path(stage.root, rest[1:]).mkdir(parents=True, exist_ok=True)
            elif keyword == "USER":
                stage.user = rest
            elif keyword == "HEALTHCHECK":
                stage.health = json.loads(rest.partition("CMD ")[2])
            elif keyword == "ENTRYPOINT":
                stage.entry = json.loads(rest)
            elif keyword not in ("VOLUME", "EXPOSE", "CMD"):
                raise SystemExit(f"image_check does not know {keyword}")
        serve(stage)
    return stage


def serve(stage: Stage) -> None:
    for compiler in ("gcc", "cc"):
        if shutil.which(compiler, path=str(stage.root / "usr/bin")):
            raise SystemExit(f"the final stage has a compiler: {compiler}")
    folder = stage.root / "checkpoint"
    folder.mkdir()
    small_checkpoint(folder / "best.safetensors")
    folder.chmod(0o755)
    server = chroot(stage, [*stage.entry, "--checkpoint", "/checkpoint/best.safetensors"])
    began = time.monotonic()
    try:
        while chroot(stage, stage.health, stderr=subprocess.DEVNULL).wait() != 0:
            if server.poll() is not None or time.monotonic() - began > 300:
                raise SystemExit("it never became healthy")
            time.sleep(1)
        print(f"healthy after {time.monotonic() - began:.1f} s, as {stage.user}", flush=True)
        one = Visitor(f"http://127.0.0.1:{PORT}")
        with tempfile.TemporaryDirectory() as name:
            songs = [write_song(Path(name, f"{seed}.wav"), 2 * CLIP, seed=seed) for seed in range(2)]
            shown = one.compose(one.give("Song A", songs[0]), one.give("Song B", songs[1]))
        if "The pattern" not in shown[0]:
            raise SystemExit(f"no composition: {shown[0]}")
        print("composed", flush=True)
    finally:
        server.terminate()
    code = server.wait(timeout=60)
    left = list(Path(stage.root, "uploads").iterdir())
    if code != 0 or left:
        raise SystemExit(f"SIGTERM: exit code {code}, left in /uploads: {left}")
    print("ended by SIGTERM with exit code 0, nothing left in /uploads", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="image-check-"))
    try:
        build(work, options.mirror, dict(pair.split("=", 1) for pair in options.set))
    finally:
        remove(work)


def remove(work: Path) -> None:
    """Removes the roots, unless something of this machine is still mounted in one: that would be removed too."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    if left := [place for place in mounts if Path(place).is_relative_to(work.resolve())]:
        print(f"{work} is left as it is: still mounted are {', '.join(left)}", file=sys.stderr)
    else:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
