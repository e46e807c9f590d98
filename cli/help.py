"""`--help`: every setting with its default, what it allows and what it means."""

import json
import textwrap
from enum import Enum
from typing import Any

from cli.settings import fields_by_key
from conf.schema import GENERATION, Schema, default_of

_NOTES = """\
Texts and paths arrive as they are typed, whatever signs they hold; lists are [a,b] or JSON. null under
sampling stands for what the checkpoint's generation_config.json says. Tokens go to standard output,
everything else to standard error. Exit status: 0 done, 1 failed on the way, 2 wrong settings or input,
130 interrupted, 141 the reader closed the pipe. Compiled programs are kept in the user's cache folder, or
where JAX_COMPILATION_CACHE_DIR says; JAX_PLATFORMS picks the device."""


def help_text(program: str, purpose: str, schema: Schema = GENERATION) -> str:
    lines = [purpose, "", f"usage: {program} [KEY=VALUE ...]", ""]
    for group, options in schema.options.items():
        lines.append(f"{group}={'|'.join(options)}")
        what = "any settings" if group in schema.whole else f"all of {group}.*"
        lines.append(f"    values for {what}, before single ones; default: {next(iter(options))}")
    for key, entry in fields_by_key(schema.root).items():
        lines.append(f"{key}={_shown(default_of(entry))}")
        text = f"{entry.metadata['help']}; {entry.metadata['allowed']}"
        lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([*lines, "", _NOTES])


def _shown(default: Any) -> str:
    if isinstance(default, Enum):
        return default.value
    return default if isinstance(default, str) else json.dumps(default)
