from language_service.engine.restarts import MOST, WINDOW_S, Restarts


def test_each_death_within_the_window_doubles_the_pause() -> None:
    restarts = Restarts()
    assert [restarts.pause_s(now) for now in (0.0, 5.0, 10.0)] == [1.0, 2.0, 4.0]


def test_after_too_many_deaths_there_is_no_further_start() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_s(float(now)) for now in range(MOST + 2)]
    assert None not in pauses[:MOST]
    assert pauses[MOST:] == [None, None]


def test_where_no_start_is_allowed_the_first_death_is_the_last() -> None:
    assert Restarts(0).pause_s(0.0) is None


def test_old_deaths_are_forgotten() -> None:
    """A process may lose its child once a month."""
    restarts = Restarts()
    for day in range(10):
        assert restarts.pause_s(day * WINDOW_S * 24) == 1.0
