"""What the commands import, for the process of which `tests.forks` makes forks. No device is started."""
# ruff: noqa: E402, F401

import os

ENVIRONMENT = dict(os.environ)

from cli.environment import prepare_environment
from cli.report import PlainReport

prepare_environment(PlainReport())

import cli.settings
import conf.serve
import sample
import serve.server
