"""The pace at which telemetry is let in follows what the loop can do."""

from derops_headend.fleet.pace import LEAST_PER_SECOND, MOST_PER_SECOND, Pace

TURN_SECONDS = 0.01


class Loop:
    """A thread that can serve so many messages a second, with agents that always have more."""

    def __init__(self, capacity_per_second: float) -> None:
        self.capacity = capacity_per_second
        self.backlog = 0.0
        self.pace = Pace()

    def turn(self) -> float:
        """Grant, receive and serve for one turn; return how late the loop is."""
        granted = 0
        while granted < 5000 and self.pace.take():
            granted += 1
        self.backlog += granted
        late_seconds = max(0.0, self.backlog / self.capacity - TURN_SECONDS)
        seconds = TURN_SECONDS + late_seconds
        served = min(self.backlog, self.capacity * seconds)
        self.backlog -= served
        self.pace.turn(
            seconds=seconds, late_seconds=late_seconds, received=round(served), waiting=True
        )
        return late_seconds


def test_the_pace_settles_near_what_the_loop_can_do_and_keeps_it_prompt() -> None:
    loop = Loop(capacity_per_second=8000)
    for _ in range(200):
        loop.turn()

    late = [loop.turn() for _ in range(1000)]

    assert 0.6 * 8000 < loop.pace.per_second < 1.5 * 8000
    assert sum(late) / len(late) < 0.004
    assert max(late) < 0.02


def test_the_pace_follows_a_loop_that_slows_down_and_recovers() -> None:
    loop = Loop(capacity_per_second=8000)
    for capacity in (8000, 2000, 8000):
        loop.capacity = capacity
        for _ in range(500):
            loop.turn()
        assert 0.5 * capacity < loop.pace.per_second < 1.6 * capacity


def test_a_loop_that_is_prompt_is_never_held_back() -> None:
    pace = Pace()
    for _ in range(100):
        assert all(pace.take() for _ in range(200))
        pace.turn(seconds=TURN_SECONDS, late_seconds=0.0, received=200, waiting=False)

    assert pace.per_second == MOST_PER_SECOND


def test_a_pause_of_a_calm_loop_does_not_hold_back_its_agents() -> None:
    """Another program has the processor for 30 ms, and nothing is received meanwhile."""
    pace = Pace()
    for _ in range(100):
        pace.turn(seconds=TURN_SECONDS, late_seconds=0.0, received=10, waiting=False)

    pace.turn(seconds=0.04, late_seconds=0.03, received=0, waiting=True)

    assert pace.per_second > 400, "of the 1000 a second that are usual"


def test_a_loop_that_stands_still_lets_a_little_through() -> None:
    pace = Pace()
    for _ in range(100):
        pace.turn(seconds=2.0, late_seconds=1.99, received=0, waiting=True)

    assert pace.per_second == LEAST_PER_SECOND
    assert pace.take()
