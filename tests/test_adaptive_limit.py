"""The limit follows its rule, does not swing, and survives an overload."""

import itertools

import pytest

from models import SettingsError
from serve.adaptive_limit import AdaptiveLimit, DecayedMean, LimitConfig

CONFIG = LimitConfig()


def after(limit: AdaptiveLimit, running: int, ttft: float | None, now: float) -> int:
    if ttft is not None:
        limit.ttft.add(ttft, now)
    return limit.adjust(running, now)


def test_it_rises_by_five_while_it_is_used_and_fast_and_falls_by_two_while_it_is_not_used():
    limit = AdaptiveLimit(CONFIG, 0.0)
    assert limit.limit == 10
    assert after(limit, 9, 0.5, 4.9) == 10  # the interval is not over
    assert after(limit, 9, 0.5, 5.0) == 15
    assert after(limit, 12, 0.5, 10.0) == 15  # 80 % are not more than 80 %
    assert after(AdaptiveLimit(CONFIG, 0.0), 3, 0.5, 5.0) == 10  # nor 30 % less than 30 %
    assert after(limit, 3, 0.5, 15.0) == 13
    for number in range(4, 40):
        after(limit, 0, None, 5.0 * number)
    assert limit.limit == 5
    for number in range(40, 80):
        after(limit, limit.limit, 0.5, 5.0 * number)
    assert limit.limit == 50


def test_it_falls_when_streams_begin_slowly_and_then_stays_below():
    limit = AdaptiveLimit(LimitConfig(initial=20), 0.0)
    assert after(limit, 20, 3.0, 5.0) == 18
    limit.ttft = DecayedMean(5.0)
    assert [after(limit, 18, 0.5, 5.0 * n) for n in range(2, 14)] == [18] * 11 + [19]


def test_a_queue_that_waits_too_long_raises_it_too():
    limit = AdaptiveLimit(CONFIG, 0.0)
    limit.queued.add(0.5, 5.0)
    assert after(limit, 5, 0.5, 5.0) == 15


def test_without_it_the_limit_is_the_most():
    limit = AdaptiveLimit(LimitConfig(enabled=False), 0.0)
    assert after(limit, 50, 99.0, 5.0) == 50


def test_old_numbers_weigh_less_and_then_nothing():
    mean = DecayedMean(10.0)
    assert mean.value(0.0) is None
    mean.add(4.0, 0.0)
    mean.add(1.0, 10.0)
    assert mean.value(10.0) == pytest.approx((4.0 / 2 + 1.0) / 1.5)
    assert mean.value(1000.0) is None


def test_how_long_to_wait_follows_the_queue():
    limit = AdaptiveLimit(CONFIG, 0.0)
    assert limit.retry_after(0, 0.0) == 1
    limit.lasting.add(20.0, 0.0)
    assert limit.retry_after(4, 0.0) == 10
    assert limit.retry_after(1000, 0.0) == 60


def simulated(arrivals: list[int], knee: int) -> tuple[list[int], list[int]]:
    """The limit and the goodput each second, where a stream takes 4 s and beyond `knee` all become slow.

    Goodput are streams that end and whose first token came within the target.
    """
    limit = AdaptiveLimit(CONFIG, 0.0)
    running: list[tuple[float, bool]] = []  # seconds left, and whether it began in time
    waiting, limits, goodput = 0, [], []
    for second, coming in enumerate(arrivals):
        now = float(second)
        waiting = min(waiting + coming, 64)  # the rest is refused
        slow = max(1.0, len(running) / knee)
        goodput.append(sum(in_time for left, in_time in running if left <= 1 / slow))
        running = [(left - 1 / slow, in_time) for left, in_time in running if left > 1 / slow]
        for _ in range(min(waiting, limit.limit - len(running))):
            waiting -= 1
            ttft = 0.5 * slow**2
            running.append((4.0, ttft <= CONFIG.target_ttft))
            limit.ttft.add(ttft, now)
        limits.append(limit.adjust(len(running), now))
    return limits, goodput


def test_it_does_not_swing():
    limits, _ = simulated([10] * 1200, knee=20)
    late = limits[300:]
    assert 20 <= min(late) <= max(late) <= 32
    changes = [b - a for a, b in itertools.pairwise(late) if a != b]
    assert len(changes) <= len(late) / 50  # seldom, and by little
    assert all(abs(change) <= 2 for change in changes)


def test_ten_times_too_much_leaves_the_goodput_flat_and_is_forgotten():
    before, during, behind = [4] * 300, [40] * 300, [4] * 300
    limits, goodput = simulated(before + during + behind, knee=20)
    windows = [sum(goodput[second : second + 20]) / 20 for second in range(0, 900, 20)]
    usual, settled, behind = windows[10:15], windows[17:30], windows[30:]  # settled: 40 s after its beginning
    assert min(usual) == max(usual) == 4
    assert 3.9 <= min(settled) <= max(settled) <= 4.8
    assert 4 <= min(behind) <= max(behind) <= 4.8  # those who wait are served first
    assert set(behind[10:]) == {4}
    assert max(limits[300:340]) <= limits[299] + 10
    assert limits[299] <= min(limits[340:]) <= max(limits[340:]) <= limits[299] + 2


@pytest.mark.parametrize(
    "settings",
    [{"min_streams": 0}, {"min_streams": 60}, {"scale_down": 0.9}, {"interval": 0.0}, {"initial": "x"}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(SettingsError, match="allowed"):
        LimitConfig(**settings)
