"""Reading a checkpoint's JSON files."""

import json
from pathlib import Path
from typing import Any

from models.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, naming the file, where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint needs one") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`, but a file that a checkpoint may leave out reads as an empty object."""
    return read_json(path) if path.exists() else {}
