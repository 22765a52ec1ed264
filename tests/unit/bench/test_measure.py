"""What is said of measured numbers."""

from __future__ import annotations

import os

import pytest

from bench.measure import Growth, cpu_seconds, median, memory_bytes, percentile, sizes, slope


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3, 1, 2], 0.5, 2), ([1, 2, 3, 4], 0.5, 2), (range(1, 101), 0.99, 99), ([7], 0.99, 7), ([5, 1], 0.0, 1)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        median([])


def test_growth_finds_what_made_the_times() -> None:
    growth = Growth.fitted([(n, 0.03 * n + 2e-6 * n * n) for n in (100, 300, 1_000)])
    assert growth.linear == pytest.approx(0.03)
    assert growth.square == pytest.approx(2e-6)
    assert growth.at(10_000) == pytest.approx(500)


def test_growth_is_never_carried_backwards() -> None:
    assert Growth.fitted([(100, 4.0), (1_000, 30.0)]).square == 0
    assert Growth.fitted([(100, 0.01), (1_000, 2.0)]).linear == 0
    assert Growth.fitted([(100, 3.0)]).at(1_000) == pytest.approx(30)


def test_slope_of_a_straight_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(1, 5)]) == 0


def test_sizes_end_with_what_was_asked_for() -> None:
    assert sizes(10_000) == [100, 1_000, 10_000]
    assert sizes(500) == [100, 500]
    assert sizes(50) == [50]


def test_our_own_process_has_used_cpu_and_memory() -> None:
    assert cpu_seconds(os.getpid()) > 0
    assert memory_bytes(os.getpid(), "VmHWM") >= memory_bytes(os.getpid()) * 0.9 > 1e6
