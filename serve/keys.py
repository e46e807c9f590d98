"""Who asks: API keys, as clients of OpenAI and browsers send them."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from models.errors import SettingsError
from serve.problems import Problem

ANYBODY = ""
"""The owner of streams where there are no keys."""

_CHALLENGE = 'Basic realm="saccade", charset="UTF-8"'  # which browsers can answer; beside another they do not
_SHORTEST = 16  # characters of a key


class Keys:
    """The keys that are let in; none: everybody is. Raises SettingsError for one that is easily guessed."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for number, key in enumerate(keys, 1):
            if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise SettingsError(
                    f"keys: key {number}: allowed: {_SHORTEST} or more visible ASCII characters, no blanks"
                )
        self._digests = [_digest(key) for key in keys]

    @property
    def needed(self) -> bool:
        """Whether there are any."""
        return bool(self._digests)

    def admit(self, authorization: str | None) -> str:
        """As `owner`. Raises Problem instead of returning None."""
        owner = self.owner(authorization)
        if owner is None:
            message = "a key is needed: Authorization: Bearer KEY"
            raise Problem(401, "unauthorized", message, headers={"WWW-Authenticate": _CHALLENGE})
        return owner

    def owner(self, authorization: str | None) -> str | None:
        """Whose streams a request may touch, by its `Authorization`; None where it must not come in.

        `Bearer KEY`, or `Basic` with the key as the password, which is what browsers ask their user for.
        Every key is compared, each in constant time: how long it takes tells nothing.
        """
        if not self.needed:
            return ANYBODY
        given = _digest(_given(authorization or ""))
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex()[:16] if any(found) else None


def read_keys(path: str | Path) -> Keys:
    """One key a line; empty lines and those that begin with # are none.

    Raises:
        SettingsError: the file cannot be read, or holds no key, or one that is too easily guessed.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise SettingsError(f"keys: {path}: {reason}; allowed: a file with a key on each line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"keys: {path}: holds no key; allowed: a key on each line")
    return Keys(keys)


def _given(authorization: str) -> str:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
