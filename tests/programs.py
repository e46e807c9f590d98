"""How the tests compile programs and where they keep them, as environment variables."""

from pathlib import Path

from jaxlib.version import __version_info__ as JAXLIB  # noqa: N812

# Each program is compiled once, for all workers and for later runs; with a limit, JAX locks the files.
PROGRAMS = {
    "DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "MAX_SIZE": str(2**30),
}
THRESHOLDS = {"MIN_COMPILE_TIME_SECS": "0.2", "MIN_ENTRY_SIZE_BYTES": "0"}  # to write a file takes time, too
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if JAXLIB < (0, 11):  # later ones do not know it: what it leaves out takes two thirds of the time
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# The tests' time is mostly compiling: code that is made sooner, and runs slower. XLA_FLAGS= has it as usual.
XLA_FLAGS = " ".join(_FLAGS)
