"""From the command line to `Settings`, with one line for whatever is wrong."""

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import Field
from typing import Any, get_type_hints

from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cli.typed import UsageError, check_unicode, parse_list, shorten
from conf.schema import GENERATION, TOKEN_IDS, Range, Schema, Settings, T, register


def fields_by_key(schema: type = Settings, prefix: str = "") -> dict[str, Field]:
    """Every setting of the schema, by its dotted key."""
    return dict(_walk(schema, prefix))


def _walk(schema: type, prefix: str) -> Iterator[tuple[str, Field]]:
    hints = get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[entry.name]):
            yield from _walk(hints[entry.name], f"{prefix}{entry.name}.")
        elif entry.metadata:
            yield prefix + entry.name, entry


def parse_settings(argv: Sequence[str], schema: Schema[T] = GENERATION) -> T:
    """The settings after `argv`'s overrides `key=value`; of two for one key the last holds.

    Raises:
        UsageError: an argument that is no override, an unknown key, a value of the wrong type.
    """
    fields = fields_by_key(schema.root)
    typed: dict[str, str] = {}
    overrides: dict[str, str] = {}
    for argument in argv:
        key, value = _split(argument, fields, schema)
        (typed if key in fields and fields[key].metadata["typed_by_user"] else overrides)[key] = value
    settings = _compose(overrides, fields, schema)
    for key, value in overrides.items():
        if key in fields:
            _check_range(key, value, settings, fields[key])
    for key, value in typed.items():
        _assign(settings, key, value)
    return settings


def _split(argument: str, fields: dict[str, Field], schema: Schema) -> tuple[str, str]:
    (key, equals, value), options = argument.partition("="), schema.options
    if key in options and equals:
        if value not in options[key]:
            raise UsageError(f"{key}: got {shorten(value)}; allowed: {', '.join(options[key])}")
    elif key in schema.without:
        raise UsageError(f"{key}: there is no such setting: {schema.without[key]}")
    elif key not in fields:
        raise UsageError(_unknown(argument, key, bool(equals), [*fields, *options]))
    elif not equals:
        raise UsageError(f"{key}: got no value; allowed: {fields[key].metadata['allowed']}")
    return key, value


def _unknown(argument: str, key: str, has_value: bool, known: list[str]) -> str:
    nearest = nearest_key(key.lstrip("-+~"), known)
    if has_value:
        what = f"unknown setting {shorten(key)}"
    else:
        what = f"{shorten(argument)} is not a setting (a value with spaces needs quotation marks)"
    return f"{what}; write KEY=VALUE; nearest key: {nearest}; --help lists all"


def nearest_key(name: str, keys: Any) -> str:
    """The key of the schema that looks most like `name`, by its full or its last part; of a group's settings
    the first."""

    def likeness(key: str) -> float:
        forms = (key, key.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, name, form).ratio() for form in forms)

    own = [key for key in keys if key.startswith(f"{name}.")]
    return own[0] if own else max(keys, key=likeness)


def _compose(overrides: dict[str, str], fields: dict[str, Field], schema: Schema[T]) -> T:
    register(schema)
    GlobalHydra.instance().clear()
    with initialize(config_path=None, version_base="1.3"):
        try:
            return _to_settings(overrides, schema)
        except (HydraException, OmegaConfBaseException):
            for key, value in overrides.items():
                _check_alone(key, value, fields, schema)
            raise  # unreachable as long as settings do not depend on each other


def _check_alone(key: str, value: str, fields: dict[str, Field], schema: Schema) -> None:
    try:
        _to_settings({key: value}, schema)
    except (HydraException, OmegaConfBaseException):
        allowed = fields[key].metadata["allowed"]
        raise UsageError(f"{key}: got {shorten(value)}; allowed: {allowed}") from None


def _check_range(key: str, given: str, settings: Any, entry: Field) -> None:
    value: Any = functools.reduce(getattr, key.split("."), settings)
    limits: Range | None = entry.metadata["limits"]
    if limits is None or value is None:
        return
    numbers = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    ids_fit = not isinstance(value, dict) or all(token in TOKEN_IDS for token in value)
    if not ids_fit or not all(number in limits for number in numbers):
        raise UsageError(f"{key}: got {shorten(given)}; allowed: {entry.metadata['allowed']}")


def _to_settings(overrides: dict[str, str], schema: Schema[T]) -> T:
    # `++` lets a dictionary take new keys; _split has refused unknown ones.
    plain = [f"{'' if key in schema.options else '++'}{key}={value}" for key, value in overrides.items()]
    config: DictConfig = compose(schema.name, overrides=plain)
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, schema.root)
    return settings


_PATHS = {"inference.image", "inference.prompts_file", "model.name", "output.plot", "stream.summary.model"}


def _assign(settings: Any, key: str, value: str) -> None:
    *groups, name = key.split(".")
    group = functools.reduce(getattr, groups, settings)
    parsed = parse_list(key, value) if isinstance(getattr(group, name), list) else value
    if key not in _PATHS:  # they may hold any bytes
        for text in [parsed] if isinstance(parsed, str) else parsed:
            check_unicode(key, text)
    setattr(group, name, parsed)
