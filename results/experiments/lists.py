"""A list of experiments as a YAML file: rows to train and test, and what its table shows of them.

    title: Motion distillation on Puppets
    description: Segment mAP over tIoU 0.3:0.1:0.7; 600 steps per run.      # Markdown, above the table
    seeds: [0, 1, 2]
    metrics:                                                                  # columns, in this order
      - {key: test/map, title: mAP %, percent: true, drawn: true}             # a metric that `test` logged
      - {key: benchmark/gflops, title: GFLOPs, digits: 1}                     # an entry of the benchmark table's row
    defaults:                                                                 # below every row's own
      fit: {overrides: {trainer.max_steps: 600}}
      test: {overrides: {trainer.precision: 32-true}}
    rows:
      - name: motion_teacher
        fit: {config: configs/motion_teacher.yaml}
      - name: decomposed
        title: decomposed distillation
        fit:
          config: configs/distill_motion.yaml
          needs: {model.init_args.teacher_weights: motion_teacher}            # the checkpoint of a row above;
                                                                              # `students/evad` is another list's
      - name: decomposed_in_bf16                                              # no fit: another row's checkpoint
        test: {config: configs/distill_motion.yaml, overrides: {trainer.precision: bf16-mixed},
               needs: {ckpt_path: decomposed}}
      - name: in_slices                                                       # its settings were deleted since:
        tag: before-slices                                                    # not run, but kept in the table
        fit: {config: configs/motion_teacher.yaml, overrides: {model.init_args.slices: 3}}

Overrides are arguments of the command line without their dashes. A row is tested with what its ``fit`` says and on top
what its ``test`` says. A ``test`` that names a config of its own stands alone. The checkpoint is that of its ``fit``.
What a row needs comes from the run of the same seed, or of the needed row's first seed where that has no such. What
it has for an argument, override or need, replaces both below it.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse import ArgumentParser

from datamodules.errors import UserError

from .files import read_listing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")
V = TypeVar("V")
SET_FOR_EVERY_RUN = ("config", "name", "seed_everything", "table_folder", "trainer.logger")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Stage:
    """Arguments of ``python main.py fit`` or ``test``."""

    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    """Argument to the row whose checkpoint it is given."""

    def over(self, below: Stage) -> Stage:
        """Return this stage, completed with the settings of the one below."""
        overrides = without(below.overrides, self.needs) | self.overrides
        # Otherwise a checkpoint of below would replace the value that is given here.
        return Stage(self.config or below.config, overrides, without(below.needs, self.overrides) | self.needs)


@dataclass(frozen=True)
class Row:
    """One experiment. Once its list is read, only ``fit`` may still be None; all else is filled in."""

    name: str
    title: str = ""
    fit: Stage | None = None
    test: Stage | None = None
    seeds: list[int] | None = None
    tag: str | None = None
    """Git's name of the last commit that can run it, where its settings are gone since: its stored results are kept."""

    @property
    def own_seeds(self) -> list[int]:
        """Return its seeds once the list is read: those of the list where it names none."""
        return self.seeds or []


@dataclass(frozen=True)
class Defaults:
    """Settings below every row's own."""

    fit: Stage = field(default_factory=Stage)
    test: Stage = field(default_factory=Stage)


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    key: str
    title: str | None = None
    percent: bool = False
    digits: int = 2
    drawn: bool = False
    """True if the picture shows it; the first metric where none is drawn."""


@dataclass(frozen=True)
class ExperimentList:
    """Rows times seeds, and the head and columns of their table."""

    title: str
    rows: list[Row]
    metrics: list[Metric]
    seeds: list[int] = field(default_factory=lambda: [0])
    description: str = ""
    defaults: Defaults = field(default_factory=Defaults)
    others: Mapping[str, ExperimentList] = field(default_factory=dict)
    """Lists beside it, by name, that its rows need checkpoints of."""


def stored_results(file: Path) -> Path:
    """Return where the results of a list are kept: ``results/<list>.jsonl`` for ``results/lists/<list>.yaml``."""
    return file.parent.parent / f"{file.stem}.jsonl"


def pages_of(file: Path) -> Path:
    """Return the folder of a list's tables and pictures: ``results/pages``."""
    return file.parent.parent / "pages"


def read_list(file: Path, readers: tuple[Path, ...] = ()) -> ExperimentList:
    """Read a list and complete its rows.

    Args:
        readers: lists that need this one.

    Raises:
        UserError: something in it is wrong; the message says where.
    """
    content = mapping(read_listing(file), f"{file}")
    for key in ("rows", "metrics"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise UserError(f"{key} must be a list with something in it, got {content.get(key)!r}", where=file)
    listing = typed(
        ExperimentList,
        content,
        f"{file}",
        rows=[read_row(row, f"{file}: rows[{place}]") for place, row in enumerate(content["rows"])],
        metrics=[typed(Metric, value, f"{file}: metrics[{place}]") for place, value in enumerate(content["metrics"])],
        defaults=with_stages(Defaults, content.get("defaults", {}), f"{file}: defaults", absent=Stage()),
        others={},
    )
    listing = replace(listing, rows=[complete(row, listing) for row in listing.rows])
    listing = replace(listing, others=read_others(listing, file, (*readers, file)))
    check(listing, file)
    return listing


def read_others(listing: ExperimentList, file: Path, readers: tuple[Path, ...]) -> dict[str, ExperimentList]:
    """Read the lists beside a list's file that its rows need, by name."""
    stages = [stage for row in listing.rows for stage in (row.fit, row.test) if stage is not None and row.tag is None]
    names = {needed.split("/")[0] for stage in stages for needed in stage.needs.values() if "/" in needed}
    result = {}
    for name in sorted(names):
        other = file.with_name(f"{name}.yaml")
        if other in readers:
            raise UserError(f"needs {name}, which needs it", where=file, remedy="move the rows into one of the two")
        if not other.is_file():
            raise UserError(f"needs a row of {name}, but there is no such list", where=file)
        result[name] = read_list(other, readers)
    return result


def without(arguments: Mapping[str, V], others: Iterable[str]) -> dict[str, V]:
    """Return the arguments that the others do not name; the command line takes names with or without ``init_args``."""
    named = set(map(plain, others))
    return {argument: value for argument, value in arguments.items() if plain(argument) not in named}


def plain(argument: str) -> str:
    return argument.replace(".init_args", "")


def read_row(value: Any, where: str) -> Row:
    name = mapping(value, where).get("name")
    return with_stages(Row, value, f"{where} ({name})" if name else where, absent=None)


def with_stages(kind: type[D], value: Any, where: str, absent: Stage | None) -> D:
    """An instance of a dataclass that has ``fit`` and ``test``."""
    written = {key: mapping(value, where).get(key) for key in ("fit", "test")}
    stages = {key: absent if stage is None else read_stage(stage, f"{where}.{key}") for key, stage in written.items()}
    return typed(kind, value, where, **stages)


def read_stage(value: object, where: str) -> Stage:
    """Return a stage; its overrides are kept as they are written, since the parser would read objects in them."""
    overrides = mapping(mapping(value, where).get("overrides") or {}, f"{where}.overrides")
    return typed(Stage, value, where, overrides=overrides)


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"expected names with values, got {value!r}", where=where)
    return value


def typed(kind: type[D], value: Any, where: str, **parts: Any) -> D:
    """An instance of a dataclass; a misspelt key or a value of another type is a UserError that says where.

    Args:
        parts: values that are read already.
    """
    names = [field.name for field in fields(kind)]
    if unknown := [key for key in mapping(value, where) if key not in names]:
        raise UserError(
            f"there is no {', '.join(map(repr, unknown))}", where=where, remedy=f"it may have {', '.join(names)}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(parts))
    try:
        parsed = parser.parse_object({key: part for key, part in value.items() if key not in parts})
    except ArgumentError as error:
        raise UserError(str(error), where=where) from None
    return kind(**dict(vars(parsed)) | parts)


def complete(row: Row, listing: ExperimentList) -> Row:
    """The row with the list's defaults under it, and with what its test takes from its fit."""
    fit = row.fit and row.fit.over(listing.defaults.fit)
    test = (row.test or Stage()).over(listing.defaults.test)
    if fit and test.config is None:
        test = test.over(fit)
    seeds = listing.seeds if row.seeds is None else row.seeds
    return replace(row, title=row.title or row.name, fit=fit, test=test, seeds=seeds)


def check(listing: ExperimentList, file: Path) -> None:
    """Raise a UserError at the first row that could not run."""
    above = {f"{name}/{row.name}": row for name, other in listing.others.items() for row in other.rows}
    for place, row in enumerate(listing.rows):
        where = f"{file}: rows[{place}] ({row.name})"
        if not NAME.fullmatch(row.name):
            raise UserError("a name is a folder's", where=where, remedy="use letters, digits and _.- only")
        if row.name in above:
            raise UserError("there is a row of this name above", where=where, remedy="give it another name")
        if not row.seeds or len(set(row.seeds)) < len(row.seeds) or min(row.seeds) < 0:
            raise UserError(f"seeds must be different numbers from 0 on, one at least, got {row.seeds}", where=where)
        for kind, stage in (("fit", row.fit), ("test", row.test)):
            if stage is not None and row.tag is None:
                check_stage(row, stage, above, f"{where}.{kind}")
        above = above | {row.name: row}


def check_stage(row: Row, stage: Stage, above: Mapping[str, Row], where: str) -> None:
    if stage.config is None:
        raise UserError("no config", where=where, remedy="name one here, in the row's fit or in defaults")
    if not Path(stage.config).is_file():
        raise UserError(
            f"no config at {stage.config}", where=where, remedy="write paths relative to the folder of main.py"
        )
    refused = (*SET_FOR_EVERY_RUN, "ckpt_path") if row.fit else SET_FOR_EVERY_RUN
    for argument in (*stage.overrides, *stage.needs):
        if argument in refused:
            raise UserError(f"{argument} is set for every run", where=where, remedy="leave it out")
    for argument, needed in stage.needs.items():
        if needed not in above or above[needed].fit is None or above[needed].tag is not None:
            rows = ", ".join(name for name, other in above.items() if other.fit and other.tag is None) or "none"
            raise UserError(
                f"{argument} is the checkpoint of a row above that is trained ({rows}), got {needed}",
                where=f"{where}.needs",
            )
        if len(without(stage.overrides, [argument])) < len(stage.overrides):
            raise UserError(f"{argument} is the checkpoint of {needed} and has a value too", where=where)
        again = sorted(set(row.own_seeds) - set(above[needed].own_seeds))
        if argument == "ckpt_path" and again:
            # They would count as so many runs, with a deviation of nothing.
            raise UserError(
                f"seeds {', '.join(map(str, again))} would test the checkpoint of {needed}'s "
                f"seed {above[needed].own_seeds[0]} again",
                where=f"{where}.needs",
                remedy=f"give the row seeds of {needed}: {above[needed].own_seeds}",
            )
