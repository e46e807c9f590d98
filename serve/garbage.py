"""The garbage collector, kept off the path of tokens.

A full collection looks at all objects of the process, a second's part with JAX and a tokenizer loaded, and
comes in the middle of a step. What is there when the server is ready stays for good; what comes behind it is
looked at every now and then, and is little.
"""

import gc


class QuietCollector:
    """While it is begun, nothing is collected but by `collect`."""

    def begin(self) -> None:
        """What lives now is not looked at any more."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def collect(self) -> None:
        """What has become garbage since."""
        gc.collect()

    def end(self) -> None:
        """As Python has it."""
        gc.enable()
        gc.unfreeze()
