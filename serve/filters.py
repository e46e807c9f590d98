"""Content filters that the server's owner names: what decides, stream by stream, which text may be shown."""

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from models.errors import SettingsError
from serve.stream import ContentFilter

FilterMaker: TypeAlias = Callable[[], ContentFilter | None]
"""Called once for each stream; None lets everything pass."""

_ALLOWED = "MODULE:NAME of what Python can import and call, once for each stream, to get its filter"


def no_filter() -> None:
    """Everything may be shown."""


def load_filter(named: str | None) -> FilterMaker:
    """What makes the filters, tried once.

    Args:
        named: MODULE:NAME of a class or function without arguments; None: nothing is filtered.

    Raises:
        SettingsError: it is not to be had, or what it makes is no filter.
    """
    if named is None:
        return no_filter
    module, _, name = named.partition(":")
    try:
        maker = getattr(import_module(module), name)
        made = maker()
    except Exception as error:  # somebody else's code: whatever it raises, this is the wrong setting
        raise SettingsError(
            f"content_filter: {named}: {type(error).__name__}: {error}; allowed: {_ALLOWED}"
        ) from None
    if not callable(made):
        raise SettingsError(
            f"content_filter: {named}() gives {type(made).__name__}, no filter; allowed: {_ALLOWED}"
        )
    return maker
