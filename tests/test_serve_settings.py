"""What `run_server.py` makes of its command line: keys and environments."""

import pytest
from prometheus_client import CollectorRegistry

from cli.serving import hub_config, metrics_server
from cli.settings import parse_settings
from cli.typed import UsageError
from conf.serve import SERVER
from serve.hosts import Hosts
from serve.hub import HubConfig
from serve.metrics import Metrics, Reading

BASE = {
    "enabled": True,
    "most": 50,
    "interval": 5.0,
    "rows": 50,
    "unacked": 100,
    "ring": 256,
    "collecting": 30.0,
}
ENVIRONMENTS = {
    "base": {},
    "production": {"most": 100, "rows": 100, "unacked": 200, "ring": 512},
    "development": {"most": 20, "interval": 1.0},
    "test": {"enabled": False, "unacked": None, "ring": 2052, "collecting": None},
}


def configured(*arguments: str) -> HubConfig:
    return hub_config(parse_settings(arguments, SERVER))


def seen(config: HubConfig) -> dict[str, object]:
    return {
        "enabled": config.streams.enabled,
        "most": config.streams.max_streams,
        "interval": config.streams.interval,
        "rows": config.engine.rows[-1],
        "unacked": config.rules.max_unacked_chunks,
        "ring": config.rules.ring,
        "collecting": config.collecting,
    }


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_environment_has_its_values(name):
    assert seen(configured(f"env={name}")) == BASE | ENVIRONMENTS[name]


def test_there_are_no_other_environments_and_the_base_is_what_holds_without_one():
    assert set(SERVER.options["env"]) == set(ENVIRONMENTS)
    assert seen(configured()) == BASE


def test_a_setting_overrides_its_environment():
    config = configured("stream_registry.backpressure.max_unacked_chunks=50", "env=production")
    assert seen(config) == BASE | ENVIRONMENTS["production"] | {"unacked": 50}


KEYS = {  # with another value than it has, and what then is another one
    "default_timeout_ms=7000": lambda config: config.rules.deadline == 7.0,
    "max_active_streams=11": lambda config: config.streams.initial == 11,
    "cleanup_interval_ms=7000": lambda config: config.retained == 7.0,
    "adaptive_limits.enabled=false": lambda config: not config.streams.enabled,
    "adaptive_limits.min_streams=7": lambda config: config.streams.min_streams == 7,
    "adaptive_limits.max_streams=40": lambda config: config.streams.max_streams == 40,
    "adaptive_limits.target_ttft_ms=700": lambda config: config.streams.target_ttft == 0.7,
    "adaptive_limits.target_latency_ms=70": lambda config: config.streams.target_queue == 0.07,
    "adaptive_limits.adjustment_interval_ms=700": lambda config: config.streams.interval == 0.7,
    "adaptive_limits.scale_up_threshold=0.7": lambda config: config.streams.scale_up == 0.7,
    "adaptive_limits.scale_down_threshold=0.2": lambda config: config.streams.scale_down == 0.2,
    "chunk_pooling.enabled=false": lambda config: config.collecting is None,
    "chunk_pooling.pool_cleanup_interval_ms=7000": lambda config: config.collecting == 7.0,
    "backpressure.enabled=false": lambda config: config.rules.max_unacked_chunks is None,
    "backpressure.max_unacked_chunks=70": lambda config: config.rules.max_unacked_chunks == 70,
    "backpressure.ack_timeout_ms=700": lambda config: config.rules.ack_timeout == 0.7,
    "backpressure.slow_consumer_threshold_ms=700": lambda config: config.rules.slow_consumer == 0.7,
    "metrics.track_ttft=false": lambda config: config.untracked == ["track_ttft"],
    "metrics.track_throughput=false": lambda config: config.untracked == ["track_throughput"],
    "metrics.track_cancellations=false": lambda config: config.untracked == ["track_cancellations"],
}


@pytest.mark.parametrize("setting", KEYS)
def test_each_key_does_something(setting):
    assert not KEYS[setting](configured())
    assert KEYS[setting](configured(f"stream_registry.{setting}"))


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("chunk_pooling.pool_size", "none is pooled"),
        ("metrics.export_interval_ms", "when Prometheus asks"),
    ],
)
def test_a_key_that_could_do_nothing_is_refused_with_the_reason(key, why):
    with pytest.raises(UsageError, match=why) as caught:
        configured(f"stream_registry.{key}=10")
    assert str(caught.value).startswith(f"stream_registry.{key}: there is no such setting: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("switch", "figure"),
    [
        ("track_ttft", "saccade_stream_ttft_seconds"),
        ("track_throughput", "saccade_stream_throughput"),
        ("track_cancellations", "saccade_stream_cancellations"),
    ],
)
def test_a_figure_that_is_not_tracked_is_not_told_and_the_others_are(switch, figure):
    def names(untracked: list[str]) -> set[str]:
        metrics = Metrics(lambda: Reading._make([0] * len(Reading._fields)), untracked)
        metrics.begun(0.1, 0.2)
        metrics.throughput(3.0)
        return {family.name for family in metrics.registry.collect()}

    assert names([]) - names([switch]) == {figure}


@pytest.mark.parametrize("switch", ["stream_registry.metrics.enabled", "telemetry.enabled"])
def test_switched_off_no_port_answers_scrapes(switch):
    given = parse_settings([f"{switch}=false"], SERVER)
    assert metrics_server(given, CollectorRegistry(), Hosts()) is None
