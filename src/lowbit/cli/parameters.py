"""What several commands take: their options, in named groups, and the values behind the options."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lowbit.data import Preprocessing

__all__ = [
    "FILE",
    "Command",
    "Option",
    "check_model",
    "data_files",
    "data_source",
    "duration",
    "option",
    "preprocessing",
    "quality_options",
]

FILE = click.Path(path_type=Path)

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option that stands in a named group of the help page."""

    def __init__(self, *arguments: Any, group: str = "Options", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class Command(click.Command):
    """A command whose help page shows its options group by group."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each group under its name, in the order in which the groups first occur."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                group = parameter.group if isinstance(parameter, Option) else "Help"
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records, col_max=34)


def option(group: str, *arguments: Any, **settings: Any) -> Callable[[_Function], _Function]:
    """Return a decorator that adds an option to a command, in a group of its help page."""
    return click.option(*arguments, cls=Option, group=group, **settings)


def quality_options(group: str) -> Callable[[_Function], _Function]:
    """Return a decorator that adds how quality is measured, the same in every command that measures it."""

    def decorate(function: _Function) -> _Function:
        for decorator in reversed(
            (
                option(
                    group,
                    "--preprocess",
                    metavar="SPEC|FILE.yaml",
                    help="How a picture becomes an input, e.g. "
                    "size=256,crop=224,mean=127,std=128,layout=NCHW,color=RGB",
                ),
                option(
                    group,
                    "--labels",
                    type=FILE,
                    metavar="FILE",
                    help="Labels of the samples: .npy, or .csv with the columns file and label.",
                ),
                option(
                    group,
                    "--metric",
                    metavar="MODULE:FUNCTION",
                    help="Your measure of quality: function(outputs, labels) -> number, higher is better. "
                    "Without it, labels give the top-1 accuracy of a classifier.",
                ),
            )
        ):
            function = decorator(function)
        return function

    return decorate


def check_model(path: Path) -> None:
    """Refuse a path where there is no model, before anything else is said about this command.

    Raises:
        ModelError: There is no file.
    """
    if not path.is_file():
        from lowbit.graph import load_model

        load_model(path)


def preprocessing(text: str | None) -> Preprocessing | None:
    """Return what `--preprocess` says: a list of key=value, or a YAML file.

    Raises:
        RecipeError: It is neither.
    """
    if text is None:
        return None
    from lowbit.data import Preprocessing, parse_preprocessing

    if text.lower().endswith((".yaml", ".yml")):
        return Preprocessing.from_yaml(text)
    return parse_preprocessing(text)


def data_source(text: str | None) -> str | None:
    """Return what `--data` names; `~` stands for the home folder, and `random` for itself."""
    if text is None or text == "random":
        return text
    return str(Path(text).expanduser())


def data_files(*texts: str | None) -> tuple[Path, ...]:
    """Return the files among what `--data` and the like name, which no output may replace."""
    return tuple(Path(text) for text in texts if text not in {None, "random"})


def duration(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Return the seconds that a length of time is: a number, or one with `s`, `m` or `h` behind it.

    Raises:
        BadParameter: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is no length of time; write 90s, 5m or 1h", context, parameter)
    return float(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
