"""What a client says to a running stream: acks, cancel, more stop strings, pause and resume."""

from typing import TypeAlias

from msgspec import Struct

from models.errors import SettingsError
from serve.credits import AckError
from serve.live import Live
from serve.prepare import RequestLimits
from serve.problems import Problem, check_limit


class Ack(Struct, forbid_unknown_fields=True, tag="ack"):
    """The delta of this id has been taken; they are acknowledged one by one, in order."""

    id: int


class Cancel(Struct, forbid_unknown_fields=True, tag="cancel"):
    """No more is wanted."""


class AddStop(Struct, forbid_unknown_fields=True, tag="stop"):
    """Strings that end the answer from now on, beside those that it has."""

    stop: list[str]


class Pause(Struct, forbid_unknown_fields=True, tag="pause"):
    """Take no step until `Resume`."""


class Resume(Struct, forbid_unknown_fields=True, tag="resume"):
    """Go on."""


Command: TypeAlias = Ack | Cancel | AddStop | Pause | Resume


def obey(live: Live, command: Command, limits: RequestLimits) -> None:
    """Do as the client says.

    Raises:
        Problem: an ack that is none, or stop strings that are not allowed. The stream goes on as it was.
    """
    match command:
        case Ack():
            _acknowledge(live, command.id)
        case Cancel():
            live.stream.cancel()
        case AddStop():
            _add_stop(live, command.stop, limits)
        case Pause():
            live.stream.pause()
        case Resume():
            live.stream.resume()


def _acknowledge(live: Live, event_id: int) -> None:
    try:
        live.stream.ack(event_id)
    except AckError as error:
        raise Problem(400, "invalid_ack", str(error)) from None


def _add_stop(live: Live, stop: list[str], limits: RequestLimits) -> None:
    check_limit("stop", "strings", len(live.job.config.stop) + len(stop), limits.stop_strings)
    check_limit("stop", "characters", max(map(len, stop), default=0), limits.stop_length)
    try:
        live.job.add_stop(stop)
    except SettingsError as error:
        raise Problem(400, "invalid_value", str(error), param="stop") from None
