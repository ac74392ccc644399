"""Show that each defence is guarded by a test: `python -m tools.mutate [ID …] [--json]`.

tests/attacks/mutations.yml names the defences. Each is taken out in a copy of the repository, where the tests
named for it must fail; before that, all of them must pass there. The checkout itself is never changed.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree as ET

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/attacks/mutations.yml"
TEST_SECONDS = 300
BASELINE_SECONDS = 540

Outcome = Literal["killed", "survived", "broken", "overdue"]
_Text = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mutation(_Model):
    """A defence: `replace` in place of `find`, which is in `file` once, takes it out or weakens it.

    `attack` is a key of the file's `attacks`, `story` what an attacker does, `requirement` an id of
    docs/compliance/requirements.yml or of the issue; each of `tests` is a node id of pytest that must fail.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    attack: _Text
    story: _Text
    requirement: _Text
    file: _Text
    find: _Text
    replace: str
    tests: tuple[_Text, ...] = Field(min_length=1)

    def apply(self, tree: Path) -> None:
        """Take the defence out of a tree. Raises ValueError where it is not there exactly once."""
        path = tree / self.file
        source = path.read_text()
        if source.count(self.find) != 1:
            raise ValueError(f"{self.id}: `find` is {source.count(self.find)} times in {self.file}")
        path.write_text(source.replace(self.find, self.replace))


class Mutations(_Model):
    """The file: kinds of attack by name, in plain words, and the defences against them."""

    attacks: dict[str, str]
    defences: tuple[Mutation, ...]


@dataclass(frozen=True)
class Result:
    """What became of a mutation; `seconds` is the time of its tests."""

    id: str
    outcome: Outcome
    seconds: float
    told: str


def load() -> Mutations:
    """Read the file. Raises pydantic.ValidationError."""
    return Mutations.model_validate(yaml.safe_load(DATA.read_text()))


@contextmanager
def copy() -> Iterator[Path]:
    """A copy of what git tracks or would track. It goes at the end, with all that is put beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="testudo-mutate-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # PostgreSQL, which tests start as another user, has to get through
        tree = Path(folder) / "0/tree"
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        (tree.parent / "tmp").mkdir()
        yield tree


def further(tree: Path, count: int) -> list[Path]:
    """Put copies of a copy beside it, so that there are `count` of them; return all."""
    trees = [tree]
    for number in range(1, count):
        trees.append(tree.parent.parent / str(number) / "tree")
        shutil.copytree(tree, trees[-1])
        (trees[-1].parent / "tmp").mkdir()
    return trees


def environment(tree: Path) -> dict[str, str]:
    """The environment in which Python, and what it starts, imports from `tree` before all else.

    Without the plugins of pytest that are installed: half of a short test's time is theirs.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TMPDIR": str(tree.parent / "tmp"),
    }


def require_own_imports(tree: Path) -> None:
    """Raise RuntimeError unless `appliance` comes from the tree, however it is installed."""
    said = subprocess.run(
        [sys.executable, "-c", "import appliance; print(appliance.__file__)"],
        cwd=tree.parent,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if Path(said) != tree / "appliance/__init__.py":
        raise RuntimeError(f"the copy is not what is imported, but {said}")


def pytest(
    tree: Path, tests: Sequence[str], *more: str, seconds: float, **variables: str
) -> tuple[Outcome, str]:
    """Run tests in a tree. "killed": one has failed, and none had an error that was not its own.

    An error of a fixture, of an import or of the collection ("broken") shows nothing but that something does
    not run; "survived" is that all have passed.
    """
    report = tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=line"),
            *(f"--junitxml={report}", *more, *tests),
        ],
        cwd=tree,
        env=environment(tree) | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "overdue", f"not over after {seconds:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if not report.exists():
        return "broken", output[-2000:]
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - pytest has written it
    failed, errors, passed = [], [], 0
    for case in cases:
        if case.find("error") is not None:
            errors.append(str(case.get("name")))
        elif case.find("failure") is not None:
            failed.append(str(case.get("name")))
        elif case.find("skipped") is None:
            passed += 1
    if process.returncode == 1 and failed and not errors:
        return "killed", ", ".join(failed)
    if process.returncode == 0 and passed:
        return "survived", f"{passed} passed"
    return "broken", f"status {process.returncode}: {', '.join(errors)}\n{output[-2000:]}"


def try_out(mutation: Mutation, tree: Path) -> Result:
    """Apply a mutation, run each of its tests, and put the file back."""
    path = tree / mutation.file
    whole, times, began = path.read_bytes(), path.stat(), time.monotonic()
    outcome: Outcome = "killed"
    told = []
    try:
        mutation.apply(tree)
        for test in mutation.tests:
            # The bytecode of a mutation would serve the next one that is as long and of the same second.
            found, said = pytest(tree, [test], "-x", seconds=TEST_SECONDS, PYTHONDONTWRITEBYTECODE="1")
            told.append(said if found == "killed" else f"{test}: {said}")
            if found != "killed":
                outcome = found
                break
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return Result(mutation.id, outcome, round(time.monotonic() - began, 1), "; ".join(told))


def main(
    ids: Annotated[list[str] | None, typer.Argument(help="Those to try; all if none is named.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=16, help="How many to try at a time.")] = 2,
) -> None:
    """Take out each defence and see its tests fail.

    Status 1 where not all mutations are killed, 2 where none could be tried.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which, unlike the signal, cleans up
    console = Console(stderr=True)
    known = {mutation.id: mutation for mutation in load().defences}
    if strange := [name for name in ids or () if name not in known]:
        console.print(f"no such mutation: {', '.join(strange)}")
        raise typer.Exit(2)
    chosen = [known[name] for name in ids] if ids else list(known.values())
    count = min(jobs, len(chosen))
    with copy() as tree:
        require_own_imports(tree)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        with console.status(f"{len(tests)} tests have to pass without a mutation"):
            more = ("-p", "xdist.plugin", "-n", str(count), "--dist", "loadfile") if count > 1 else ()
            outcome, told = pytest(tree, tests, *more, seconds=BASELINE_SECONDS)
        if outcome != "survived":
            console.print(escape(f"without any mutation the tests do not pass: {told}"), style="red")
            raise typer.Exit(2)
        results = _all(chosen, further(tree, count), console)
    _show(results, known, as_json=as_json)
    if any(result.outcome != "killed" for result in results):
        raise typer.Exit(1)


def _all(chosen: Sequence[Mutation], trees: Sequence[Path], console: Console) -> list[Result]:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def one(mutation: Mutation) -> Result:
        tree = free.get()
        try:
            return try_out(mutation, tree)
        finally:
            free.put(tree)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(len(trees)) as pool:
        task = progress.add_task("mutations", total=len(chosen))
        for result in pool.map(one, chosen):
            results.append(result)
            progress.advance(task)
            if result.outcome != "killed":
                progress.console.print(
                    f"[red]{result.outcome}[/] {result.id}: {result.told}", highlight=False
                )
    return results


def _show(results: Sequence[Result], known: dict[str, Mutation], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    killed = sum(result.outcome == "killed" for result in results)
    table = Table(
        "Mutation", "Attack", "Outcome", "Seconds", title=f"{killed} of {len(results)} mutations were killed"
    )
    for result in results:
        colour = "green" if result.outcome == "killed" else "red"
        table.add_row(
            result.id, known[result.id].attack, f"[{colour}]{result.outcome}[/]", f"{result.seconds:g}"
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
