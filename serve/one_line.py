"""JSON as it is sent: one line, also for clients that split at every end of a line that Unicode has."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
_LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}


def encode(value: Any) -> bytes:
    """`value` as JSON, which escapes the ASCII ends of lines itself."""
    made = _encode(value)
    if not made.isascii():
        for end, escaped in _LINE_ENDS.items():
            made = made.replace(end, escaped)
    return made
