"""Values taken as they were typed: Hydra's grammar would refuse or change them."""

import json


class UsageError(Exception):
    """A wrong command line. Not a `models.SettingsError`: importing that imports JAX, and a typing mistake is
    answered at once."""


def parse_list(key: str, value: str) -> list[str]:
    """`[a,b]` is a list and `null` an empty one; anything else is one text.

    A list is JSON (`["a, b", "c"]`: holds any text), or plain texts between commas.

    Raises:
        UsageError: a list with quotation marks that is not JSON.
    """
    if value == "null":
        return []
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    try:
        items = json.loads(value)
    except json.JSONDecodeError:
        items = [item.strip() for item in value[1:-1].split(",")]
        if any(item[:1] in {'"', "'"} for item in items):
            raise UsageError(
                f"{key}: got {shorten(value)}; a list with quotation marks is written as JSON, "
                '["a", "b"], with double quotation marks around each text'
            ) from None
    if not all(isinstance(item, str) for item in items):
        items = [item.strip() for item in value[1:-1].split(",")]  # [1,2]: texts that look like numbers
    return items


def shorten(value: str, limit: int = 80) -> str:
    """The value in quotation marks, on one line, cut to `limit` characters."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[: limit - 4]}...{shown[-1]}"


def check_unicode(key: str, text: str) -> None:
    """Refuse text that no encoding of Unicode can hold (bytes of another encoding on the command line).

    Raises:
        UsageError: there are lone surrogates in `text`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{key}: got {shorten(text)}, which is not valid UTF-8 at character {error.start}"
        ) from None
