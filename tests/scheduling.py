"""Which tests run in one process: what they need is then made, traced and compiled once."""

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

# Files that share what takes long to start; every other file stays together by itself.
GROUPS = {
    "server": {"test_server", "test_rpc", "test_web_socket", "test_disconnects", "test_page", "test_resume"},
    "engine": {"test_engine", "test_engine_endless", "test_prefixes"},
}


class Together(LoadScopeScheduling):
    """Files and groups of files, those of the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.split("::", 1)[0]).stem
        return next((group for group, files in GROUPS.items() if file in files), file)
