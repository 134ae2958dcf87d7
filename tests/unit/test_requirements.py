"""Which versions of other packages the farm asks for."""

import lowest
from packaging.version import Version

FOR_PEOPLE = ("gateway", "nsfw", "score", "worker", "opentelemetry", "sign", "cluster", "all")


def test_every_package_that_a_farm_needs_has_an_oldest_version() -> None:
    """pip keeps what is installed already, however old it is, where no version is asked for."""
    assert [name for name, version in lowest.bounds(FOR_PEOPLE).items() if version is None] == []


def test_what_is_installed_for_tests_is_no_older_than_is_asked_for() -> None:
    asked = {name: version for name, version in lowest.bounds().items() if version is not None}
    pins = lowest.pins()
    assert [name for name in asked if Version(pins[name]) < Version(asked[name])] == []
