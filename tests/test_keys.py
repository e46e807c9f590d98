"""Who asks, and how often: keys, and rates of keys."""

import asyncio
import base64
import hmac
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from models.errors import SettingsError
from serve.keys import ANYBODY, Keys, read_keys
from serve.problems import Problem
from serve.rates import Rates
from serve.rpc import messages
from serve.rpc.guard import Guard
from serve.rpc.service import Service

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_without_keys_everybody_is_let_in():
    assert Keys().owner(None) == Keys().owner("Bearer x") == ANYBODY


def test_each_key_is_let_in_as_its_own_owner():
    keys = Keys([FIRST, SECOND])
    owners = [keys.owner(f"Bearer {key}") for key in (FIRST, SECOND)]
    assert None not in owners
    assert len({*owners, ANYBODY}) == 3
    assert [keys.owner(f"bearer  {FIRST} "), keys.owner(basic(f"anyone:{SECOND}"))] == owners
    assert not any(key in owner for key in (FIRST, SECOND) for owner in owners)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {FIRST}x",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST.upper()}",
        FIRST,
        f"Digest {FIRST}",
        "Basic %%%",
        basic(FIRST),
        basic(f"{FIRST}:"),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Bearer \udcff\x00é",
    ],
)
def test_what_is_no_key_is_not_let_in(given):
    assert Keys([FIRST]).owner(given) is None


def test_all_keys_are_compared_in_constant_time_whichever_fits(monkeypatch):
    compared = []
    digest = hmac.compare_digest
    monkeypatch.setattr(
        hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or digest(a, b)
    )
    keys = Keys([FIRST, SECOND])
    for given in (FIRST, SECOND, "x", "x" * 1000):
        compared.clear()
        keys.owner(f"Bearer {given}")
        assert compared == [(32, 32)] * 2


def test_a_call_of_grpc_looks_its_key_up_once_and_is_of_its_owner():
    looked_up: list[str | None] = []
    owners: dict[str, str] = {}

    class Counting(Keys):
        def owner(self, authorization: str | None) -> str | None:
            looked_up.append(authorization)
            return super().owner(authorization)

    def find(stream: str, owner: str) -> Any:
        owners[stream] = owner
        return SimpleNamespace(stream=SimpleNamespace(cancel=lambda: None))

    async def call_as(*keys: str) -> None:
        hub: Any = SimpleNamespace(config=SimpleNamespace(keys=counting), find=find)
        service = Service(hub)
        server = grpc.aio.server(interceptors=(Guard(counting, service.refuse),))
        server.add_generic_rpc_handlers((service.handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            cancel = channel.unary_unary(
                f"/{messages.SERVICE}/Cancel", request_serializer=messages.CancelRequest.SerializeToString
            )
            calls = [
                cancel(messages.CancelRequest(stream=key), metadata=(("authorization", f"Bearer {key}"),))
                for key in keys
            ]
            await asyncio.gather(*calls)
        await server.stop(None)

    counting = Counting([FIRST, SECOND])
    asyncio.run(call_as(FIRST, SECOND, FIRST))
    assert sorted(map(str, looked_up)) == sorted(f"Bearer {key}" for key in (FIRST, SECOND, FIRST))
    assert owners == {key: Keys([key]).owner(f"Bearer {key}") for key in (FIRST, SECOND)}


def test_keys_are_read_from_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# of the office\n{FIRST}\n\n  {SECOND}\n")
    keys = read_keys(path)
    assert None not in (keys.owner(f"Bearer {FIRST}"), keys.owner(f"Bearer {SECOND}"))
    assert keys.owner("Bearer # of the office") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# none\n", "holds no key"),
        (b"x" * 15, "key 1: allowed: 16 or more"),
        (f"{FIRST}\nwith a blank in it\n".encode(), "key 2: allowed"),
        ("ключ".encode() * 8, "key 1: allowed"),
        (b"\xff" * 20, "no text"),
        (None, "No such file"),
    ],
)
def test_a_file_without_proper_keys_is_refused(tmp_path, content, message):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_a_key_may_begin_as_many_streams_as_its_rate_says():
    rates = Rates("3/hour")
    for _ in range(3):
        rates.take("one")
    for _ in range(2):
        with pytest.raises(Problem, match="3 per 1 hour") as caught:
            rates.take("one")
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    assert 3590 <= int(caught.value.headers["Retry-After"]) <= 3600
    rates.take("another")


def test_of_several_rates_each_holds_and_what_is_refused_is_not_counted():
    rates = Rates("5/hour;2/second")
    rates.take("one")
    rates.take("one")
    with pytest.raises(Problem, match="2 per 1 second") as caught:
        rates.take("one")
    assert caught.value.headers["Retry-After"] == "1"
    assert caught.value.body["error"]["code"] == "rate_limited"


def test_without_a_rule_there_is_no_rate():
    for _ in range(1000):
        Rates().take("one")


@pytest.mark.parametrize("rule", ["", "often", "0/minute", "5", "-1/second", "5/fortnight"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(SettingsError, match="rate: got"):
        Rates(rule)
