"""What is read from sightings of workers."""

from watch import Life, Sighting, complete, elsewhere, given_back


def life(session: str, *tasks: str) -> Life:
    return Life(session, session[:2], frozenset(tasks))


SEEN = [
    Sighting(1.0, (life("w1a", "x"), life("w2a", "y", "z")), 2),
    Sighting(5.0, (), 0, answered=False),
    Sighting(6.0, (life("w1a", "x"), life("w2a", "z")), 2),
    Sighting(9.0, (life("w1a", "x"),), 1),
    Sighting(9.5, (life("w1a"),), 1),
    Sighting(10.0, (life("w1a", "z"), life("w2b")), 1),
    Sighting(11.0, (life("w1a", "z"), life("w2b")), 2),
]


def test_tasks_are_given_back_when_their_session_ends_and_not_while_the_queue_is_silent() -> None:
    assert given_back(SEEN, 4.0) == 5.0
    assert given_back(SEEN[:3], 4.0) is None
    assert given_back(SEEN, 9.2) is None


def test_what_an_ended_session_held_last_counts_when_another_one_holds_it() -> None:
    assert elsewhere(SEEN, 4.0) == 6.0
    assert elsewhere(SEEN[:5], 4.0) is None


def test_workers_are_complete_when_queue_and_scheduler_say_so_for_good() -> None:
    assert complete(SEEN, 2, 2.0) == 8.0
    assert complete(SEEN, 2, 2.0, placed=True) == 9.0
    assert complete(SEEN[:3], 2, 2.0) == 4.0  # the queue was silent in between
    assert complete(SEEN[:1], 2, 2.0) == 0.0
    assert complete(SEEN[:5], 2, 2.0) is None
