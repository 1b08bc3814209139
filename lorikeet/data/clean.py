"""Cleaning: rows of any files through a chain of steps to one file, with every row accounted for.

Beside the output NAME.jsonl stand NAME.rejected.jsonl (what was left out, each with file, row, step and reason),
NAME.origins.jsonl (which row of which file each row of the output is) and NAME.report.json (what each step did).
They appear together at the end; until then everything is in a folder of its own, and the same command goes on there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pydantic import Field

from lorikeet.base.errors import DataError, Interrupted, OutputError, RecipeError
from lorikeet.base.files import need_space, sha256_file, sync
from lorikeet.base.kinds import kind_field, own_code
from lorikeet.base.log import note, progress
from lorikeet.base.machine import usable_cores
from lorikeet.base.options import Options
from lorikeet.data.files import Advance
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.auto import Auto
from lorikeet.data.sources import Opened, Sources, open_all
from lorikeet.data.steps import _read, _work
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record
from lorikeet.data.steps._report import Report, companion, finished
from lorikeet.data.steps._values import to_line

# raised when the same inputs and steps begin to give other rows: unfinished work from before is then done again
_VERSION = 5
_SMALL_BYTES = 4 << 20  # files below this are clean before processes have started
_BIG_BYTES = 8 << 20  # files from this size on show a progress bar
_ENDINGS = (".jsonl", ".json")


class CleanOptions(Options):
    """What `lorikeet data clean` does: a YAML file of these, or the same said on the command line."""

    input: Sources = Field(min_length=1, description="Files, folders, URLs or hub data sets.", examples=[["mine.json"]])
    output: Path = Field(description="The file to write: .jsonl, or .json (one list).", examples=["clean.jsonl"])
    steps: list[kind_field("lorikeet.data.steps", Step)] = Field(  # type: ignore[valid-type]
        min_length=1, description="The steps in their order, each a name, or a mapping with its kind and options."
    )
    format: kind_field("lorikeet.data.formats", Format) = Field(  # type: ignore[valid-type]
        Auto.model_validate({}), description="How rows read: a format's name, alone or with its options."
    )
    workers: int | None = Field(None, ge=1, le=256, description="Processes; null: one for each core.")


def clean(options: CleanOptions, *, overwrite: bool = False) -> Report:
    """Run the chain. A finished output of the same inputs and steps is left as it is, unless `overwrite`.

    Raises RecipeError for options that contradict each other, DataError for files that cannot be read, MissingExtra for
    a step's package, OutputError for an output that is there or in use, Interrupted (resumable) on Ctrl-C."""
    output = _checked_output(options)
    for step in options.steps:
        step.start()
    sources = open_all(options.input)
    _no_weights(sources)
    files = [file for source in sources for file in source.files]
    if output.resolve() in {Path(file).resolve() for file in files}:
        raise RecipeError("output: is one of the inputs", given=output, allowed="another file")
    identity = _identity(options, sources)
    before = None if overwrite else finished(output, identity)
    if before is not None:
        note(f"{output}: made from the same files by the same steps before; nothing to do")
        return before
    there = [path for path in _all_files(output) if path.exists()]
    if there and not overwrite:
        raise OutputError(
            f"{there[0]} is there already, of other inputs or steps", given=output, try_="--overwrite, or another -o"
        )
    need_space(output.parent, 3 * sum(Path(file).stat().st_size for file in files), "the rows and the work on them")
    with _work_folder(output, identity) as folder:
        try:
            report = _Run(options, sources, folder, identity).run()
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; what is done is kept", try_="the same command goes on from there") from error
        except DataError:  # with another input none of the work would be of use
            shutil.rmtree(folder)
            raise
        for path in _all_files(output):
            name = folder / path.name
            sync(name)
            name.replace(path)
        shutil.rmtree(folder)
    return report


class _Run:
    """One run of a chain in its work folder."""

    def __init__(self, options: CleanOptions, sources: Sequence[Opened], folder: Path, identity: str):
        self.options, self.sources, self.folder, self.identity = options, sources, folder, identity
        self.size = sum(Path(file).stat().st_size for source in sources for file in source.files)
        self.chain = _work.stages(options.steps)
        names = [_read.STEP, *(str(step.model_dump()["kind"]) for step in options.steps)]
        self.logs = [Log(name) for name in names]
        self.rows_of_files: dict[str, int] = {}
        self.workers = options.workers or (usable_cores() if self.size >= _SMALL_BYTES else 1)

    def run(self) -> Report:
        output = self.options.output
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context((self.folder / path.name).open("wb"))
                for name, path in zip(("output", "rejected", "origins"), _all_files(output))
            }
            # a file for each stage: how far one is ahead of the next depends on the number of processes
            self.rejected: list[IO[bytes]] = [
                opened["rejected"],
                *(stack.enter_context(TemporaryFile(dir=self.folder)) for _ in self.chain[1:]),
            ]
            submit = stack.enter_context(_work.pool(self.chain, self.workers))
            bar = stack.enter_context(_bar(self.size))
            results = self._stages(submit, bar, stack)
            rows = _written(results, opened["output"], opened["origins"], as_list=output.suffix == ".json")
            for later in self.rejected[1:]:
                later.seek(0)
                shutil.copyfileobj(later, opened["rejected"])
        for log in self.logs:
            log.check()
        report = Report(self.identity, str(output), self.rows_of_files, rows, [log.as_dict() for log in self.logs])
        report.check()
        (self.folder / companion(output, "report.json").name).write_bytes(report.as_json())
        return report

    def _stages(
        self, submit: Callable[[_work.Task], Callable[[], bytes]], bar: Advance | None, stack: ExitStack
    ) -> Iterator[_work.Result]:
        """The last stage's results."""
        records: Iterator[Record] | None = None
        for number, stage in enumerate(self.chain):
            if number == 0 and not stage.steps:  # reading alone is no work to send to another process
                records = self._read_here(bar)
                continue
            if stage.in_order:
                assert records is not None
                for step, place in zip(stage.steps, stage.numbers):
                    records = self._in_order(step, self.logs[place], records, number)
                continue
            tasks = self._read_tasks(bar) if records is None else _packed_tasks(number, records)
            journal = _work.Journal(self.folder / f"stage{number}.journal")
            stack.callback(journal.close)
            results = map(partial(self._counted, number), _work.mapped(tasks, submit, journal, self.workers))
            if stage.last:
                return results
            records = (record for result in results for record in result.records())
        raise AssertionError("the last stage writes")

    def _read_tasks(self, bar: Advance | None) -> Iterator[_work.Task]:
        for source in self.sources:
            left = source.options.max_examples
            for file in source.files:
                settled, rows = _read.rows_of(file, source.options.format or self.options.format, bar)
                wanted = islice(rows, left)
                while piece := list(islice(wanted, _work.PIECE)):
                    self.rows_of_files[file] = self.rows_of_files.get(file, 0) + len(piece)
                    left = None if left is None else left - len(piece)
                    yield 0, settled, piece
                if left == 0:
                    break

    def _read_here(self, bar: Advance | None) -> Iterator[Record]:
        for _, settled, piece in self._read_tasks(bar):
            assert settled is not None
            for record in _read.records(piece, settled, self.logs[0]):
                self._reject(self.logs[0].entries, 0)
                yield record
            self._reject(self.logs[0].entries, 0)

    def _in_order(self, step: Step, log: Log, records: Iterator[Record], stage: int) -> Iterator[Record]:
        for record in step.clean(records, log):
            self._reject(log.entries, stage)
            yield record
        self._reject(log.entries, stage)

    def _counted(self, stage: int, made: bytes) -> _work.Result:
        result = _work.result(made)
        for place, counts, entries in result.logs:
            self.logs[place].add(counts)
            self._reject(entries, stage)
        return result

    def _reject(self, entries: list[dict[str, Any]], stage: int) -> None:
        for entry in entries:
            self.rejected[stage].write(to_line(entry))
        entries.clear()


def _packed_tasks(number: int, records: Iterator[Record]) -> Iterator[_work.Task]:
    while piece := [record.packed() for record in islice(records, _work.PIECE)]:
        yield number, None, piece


def _written(results: Iterable[_work.Result], output: IO[bytes], origins: IO[bytes], *, as_list: bool) -> int:
    """Write the rows and where they came from; how many there are."""
    rows = 0
    for result in results:
        for line in result.lines:
            if as_list:
                output.write(b",\n" if rows else b"[\n")
                line = line.rstrip(b"\n")
            output.write(line)
            rows += 1
        origins.write(b"".join(map(to_line, result.origins)))
    if as_list:
        output.write(b"\n]\n" if rows else b"[]\n")
    return rows


def _all_files(output: Path) -> list[Path]:
    """The output and what stands beside it; the report comes last, so it is there only with all the others."""
    return [output, *(companion(output, kind) for kind in ("rejected.jsonl", "origins.jsonl", "report.json"))]


def _checked_output(options: CleanOptions) -> Path:
    output = options.output
    if output.suffix not in _ENDINGS or output.is_dir():
        raise RecipeError(
            "output: is no file of rows",
            given=output,
            allowed=" ".join(_ENDINGS),
            try_=str(output.with_suffix(".jsonl")),
        )
    need_space(output.parent, 0, "the rows")
    return output


def _no_weights(sources: Sequence[Opened]) -> None:
    for number, source in enumerate(sources):
        if source.options.weight is not None:
            raise RecipeError(
                f"input.{number}.weight: has no effect, because cleaning reads each row once",
                given=f"{source.title}: weight {source.options.weight:g}",
                allowed="weights where sources are mixed: data.train of a recipe",
            )


def _identity(options: CleanOptions, sources: Sequence[Opened]) -> str:
    """A hash over everything that decides the output."""
    said = [source.options.model_dump(mode="json", include={"format", "max_examples"}) for source in sources]
    parts = {
        "version": _VERSION,
        "files": [[file, sha256_file(Path(file))] for source in sources for file in source.files],
        "sources": [[one, *own_code(source.options)] for one, source in zip(said, sources)],
        "steps": [
            [step.model_dump(mode="json"), own_code(step), step.fingerprint(), *map(sha256_file, step.files())]
            for step in options.steps
        ],
        "format": [options.format.model_dump(mode="json"), own_code(options.format)],
    }
    return hashlib.sha256(to_line(parts)).hexdigest()[:32]


@contextmanager
def _work_folder(output: Path, identity: str) -> Iterator[Path]:
    """A folder for unfinished work, locked; work of other inputs or steps in it is thrown away."""
    folder = output.parent / f".{output.name}.work"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        _lock(handle, output)
        name = folder / "identity"
        if not name.is_file() or name.read_text(encoding="utf-8") != identity:
            for old in folder.glob("*.journal"):
                old.unlink()
            name.write_text(identity, encoding="utf-8")
        elif any(folder.glob("*.journal")):
            note(f"{output}: goes on where it was stopped")
        yield folder
    finally:
        os.close(handle)


def _lock(handle: int, output: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two runs at once are the person's own care there
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(f"{output} is being made by another process", try_="wait for it, or another -o") from error


@contextmanager
def _bar(size: int) -> Iterator[Advance | None]:
    """A progress bar over the bytes of big files; nothing for small ones."""
    with progress() if size >= _BIG_BYTES else nullcontext() as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("cleaning (bytes read)", total=size)
        yield lambda count: bar.advance(task, count)
