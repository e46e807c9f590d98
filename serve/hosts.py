"""By which names a server without keys is called.

A page from anywhere may have its own name lead to this machine (DNS rebinding): the browser then takes the
server for that page's own. Its requests still name their host, which is no address and no name of the server.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from models.errors import SettingsError
from serve.problems import Problem

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


class Hosts:
    """Any address, localhost, and `names`.

    Args:
        any_name: all others, too, as where keys keep the pages of others out.

    Raises:
        SettingsError: a name that is none.
    """

    def __init__(self, names: Sequence[str] = (), *, any_name: bool = False) -> None:
        for name in names:
            if not _NAME.fullmatch(name):
                raise SettingsError(f"host_names: {name!r}; allowed: such as example.com, without a port")
        self._names, self._any = {"localhost", *names}, any_name

    def check(self, host: str | None) -> None:
        """Raises Problem for a `Host` that may be somebody else's; without one, no browser asks."""
        if host is not None and not self._any and not self._known(host):
            allowed = "an address, localhost, or a name of the server's settings (serve.host_names)"
            raise Problem(421, "unknown_host", f"Host: {host[:100]!r}; allowed: {allowed}")

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a bracket that is not closed
            return False
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
