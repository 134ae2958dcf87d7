"""The picture of the packages in the docs, and that no room is outside the import contract."""

import grimp
import package_graph
import pytest


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return package_graph.build()


def test_every_room_is_in_exactly_one_layer_of_the_import_contract(
    graph: grimp.ImportGraph,
) -> None:
    in_layers = [name for layer in package_graph.layers() for name in layer]
    assert sorted(in_layers) == sorted(package_graph.rooms(graph))


def test_the_page_of_the_packages_is_up_to_date(graph: grimp.ImportGraph) -> None:
    page = package_graph.PAGE.read_text(encoding="utf-8")
    assert page == package_graph.page(graph), "run `make graph`"
