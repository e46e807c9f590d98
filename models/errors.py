"""The project's own exceptions: one line each, saying what was given, what is allowed and where."""


class SaccadeError(ValueError):
    """Base of all errors that a caller can cause."""


class CheckpointError(SaccadeError):
    """A checkpoint that cannot be found, read, or does not fit its configuration."""


class InputError(SaccadeError):
    """A picture, prompt or token array that cannot be used."""


class PromptTooLongError(InputError):
    """A prompt that the model's context has no room for."""


class SettingsError(SaccadeError):
    """A setting that is unknown, of the wrong type, or out of range."""
