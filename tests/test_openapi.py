"""The HTTP routes are as their description says, for whatever is sent to them."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from serve.openapi import describe
from tests.servers import SMALL, Server, running

_CANNOT_SAY = [schemathesis.checks.positive_data_acceptance]  # ranges that depend on the model


@pytest.fixture(scope="module")
def server(tiny_directory, env) -> Iterator[Server]:
    with running(tiny_directory(), env, *SMALL, "limits.new_tokens=3") as server:
        yield server


@pytest.fixture(scope="module")
def description(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ROUTES = [
    *((RIGHT, path, method) for path, item in describe(secured=False)["paths"].items() for method in item),
    (WRONG, "/v1/chat/completions", "post"),
    (WRONG, "/v1/stream", "post"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "path", "method"), ROUTES)
def test_every_answer_is_one_that_the_description_names(description, mode, path, method):
    @given(case=description[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        case.call_and_validate(excluded_checks=_CANNOT_SAY, timeout=60)

    check()


def test_keys_are_named_where_they_are_needed():
    assert "security" not in describe(secured=False)
    described = describe(secured=True)
    assert described["security"]
    opened = {path for path, item in described["paths"].items() if item.get("get", {}).get("security") == []}
    assert opened == {"/health", "/ready"}
