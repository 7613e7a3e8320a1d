"""The words of a command line, read into dataclasses: a class a command, a field an option.

A field's type and default say what is allowed, the string below the field says what it is for, and what is wrong is one
sentence. Standard library only: the program also starts on a rented machine that has torch and little else.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

T = TypeVar("T")
_AT_ITS_PLACE = object()
Positional = Annotated[T, _AT_ITS_PLACE]  # a word without --name before it
Commands = dict[str, "type | Commands"]


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"bpl: {message} ({self.prog} --help says what is allowed)\n")


def read(commands: Commands, words: list[str] | None, *, prog: str, description: str, epilog: str = "") -> Any:
    """Read a command line.

    Args:
        commands: command -> its dataclass, or the commands below it. A field that is a dataclass itself stands for
            its fields.
        words: the words; None for the process's own.
        prog: the program's name.
        description: what it is, in a sentence.
        epilog: what its help ends with.

    Returns:
        An object of the command's dataclass.

    Raises:
        SystemExit: with 0 after help was asked for, with 2 after a word that cannot be read.
    """
    parser = _Parser(prog=prog, description=description, epilog=_escaped(epilog), allow_abbrev=False)
    _add_commands(parser, commands)
    values = vars(parser.parse_args(words))
    return _build(values.pop("command"), values)


def _add_commands(parser: argparse.ArgumentParser, commands: Commands) -> None:
    below = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, kind in commands.items():
        if isinstance(kind, dict):
            text = f"one of {', '.join(kind)}"
            _add_commands(below.add_parser(name, help=text, description=text, allow_abbrev=False), kind)
            continue
        text = _escaped(inspect.getdoc(kind).splitlines()[0])
        command = below.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=kind)
        for field, type_, help_ in _fields(kind):
            _add_option(command, field, type_, help_)


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field, Any, str]]:
    """Every field of a command, those of nested dataclasses included, with its type and what it is for."""
    types_, texts = typing.get_type_hints(kind, include_extras=True), _texts(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(types_[field.name]):
            yield from _fields(types_[field.name])
        else:
            yield field, types_[field.name], texts.get(field.name, "")


def _texts(kind: type) -> dict[str, str]:
    """Field -> what it is for: the string below it, or its line under ``Attributes:`` in the docstring of the class."""
    listed = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(kind), re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in listed}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    except (OSError, TypeError):  # a class that was put together has no source
        return texts
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[field.target.id] = inspect.cleandoc(below.value.value)
    return texts


def _add_option(command: argparse.ArgumentParser, field: dataclasses.Field, type_: Any, text: str) -> None:
    at_its_place = typing.get_origin(type_) is Annotated and _AT_ITS_PLACE in type_.__metadata__
    if at_its_place:
        type_ = typing.get_args(type_)[0]
    words = [field.name] if at_its_place else [f"--{field.name.replace('_', '-')}"]
    options: dict[str, Any] = {"help": _escaped(text)}
    if not at_its_place:
        options["dest"] = field.name
    if type_ is bool:
        command.add_argument(*words, action="store_true", **options)
        return
    if typing.get_origin(type_) is tuple:
        type_, options["nargs"] = typing.get_args(type_)[0], "+"
    options["type"], options["metavar"] = _reader(type_), field.name.upper() if at_its_place else _sign(type_)
    if field.default is not dataclasses.MISSING:
        options["default"] = field.default
        if at_its_place:
            options["nargs"] = "?"
        if field.default not in (None, ""):
            options["help"] += f" (default: {_escaped(str(field.default))})"
    elif not at_its_place:
        options["required"] = True
    command.add_argument(*words, **options)


def _reader(type_: Any) -> Callable[[str], Any]:
    """Turns a word into a value of a type; of ``X | Y | None`` into the first that it can be."""

    def read_word(word: str) -> Any:
        for kind in _kinds(type_):
            if kind is type(None) and word == "None":
                return None
            if kind is bool and word in ("True", "False"):
                return word == "True"
            if kind not in (type(None), bool):
                try:
                    return kind(word)
                except ValueError:
                    pass
        raise ValueError(word)

    read_word.__name__ = _name(type_)  # argparse names it in what it says of a word that it cannot read
    return read_word


def _kinds(type_: Any) -> list[type]:
    """The types of a union, None first, since the word None is text too."""
    kinds = list(typing.get_args(type_)) if isinstance(type_, types.UnionType) else [type_]
    return sorted(kinds, key=lambda kind: kind is not types.NoneType)


def _name(type_: Any) -> str:
    names = {bool: "True/False", str: "text", int: "whole number", float: "number", types.NoneType: ""}
    return " or ".join(filter(None, (names.get(kind, kind.__name__.lower()) for kind in _kinds(type_))))


def _sign(type_: Any) -> str:
    """What stands for a value in a help text."""
    signs = {bool: "True|False", str: "WORD", int: "N", float: "X", types.NoneType: ""}
    return "|".join(filter(None, (signs.get(kind, kind.__name__.upper()) for kind in _kinds(type_))))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # argparse formats help texts


def _build(kind: type, values: dict[str, Any]) -> Any:
    """An object of a command's dataclass from the values of all fields, nested ones included."""
    made = {}
    for name, type_ in typing.get_type_hints(kind).items():
        nested = dataclasses.is_dataclass(type_)
        value = _build(type_, values) if nested else values[name]
        made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)
