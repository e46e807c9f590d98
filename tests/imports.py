"""What the commands import, for the process of which `tests.forks` makes forks. It must not start a device."""

import os

ENVIRONMENT = dict(os.environ)

from cli.environment import prepare_environment  # noqa: E402
from cli.report import PlainReport  # noqa: E402

prepare_environment(PlainReport())

import cli.settings  # noqa: E402
import conf.serve  # noqa: E402
import sample  # noqa: E402
import serve.server  # noqa: E402, F401
