"""How a Lua script is assembled from the parts that it requires."""

from collections import Counter

import pytest
from lua_lint import read_names

from farm.job import Priority
from farm.queue.constants import CLASSES, MAX_ROWS, MAX_TENANT_LANES, SCHEMA
from farm.queue.scripts import assemble, order_parts, read_bodies, read_parts, read_scripts

PARTS = {
    "base": "-- The base.\nlocal base = 1\n",
    "left": "-- requires: base\nlocal left = base\n",
    "right": "-- requires: base\nlocal right = base\n",
}


def test_a_part_comes_once_and_after_what_it_requires() -> None:
    script = "#!lua flags=no-writes\n-- requires: left, right\nreturn left + right\n"
    assert order_parts(script, PARTS) == ["base", "left", "right"]
    assembled = assemble(script, PARTS)
    assert assembled.startswith("#!lua flags=no-writes\n-- The base.\n")
    assert assembled.endswith("return left + right\n")
    assert assembled.count("local base") == 1


def test_parts_may_be_named_in_several_lines() -> None:
    assert order_parts("-- requires: left,\n-- requires: right\n", PARTS) == [
        "base",
        "left",
        "right",
    ]


def test_an_unknown_part_is_refused_with_the_part_that_requires_it() -> None:
    parts = {**PARTS, "left": "-- requires: lost\n"}
    with pytest.raises(ValueError, match="there is no Lua part 'lost'; left requires it"):
        order_parts("-- requires: left\n", parts)


def test_parts_that_require_each_other_are_refused() -> None:
    parts = {"left": "-- requires: right\n", "right": "-- requires: left\n"}
    with pytest.raises(ValueError, match="left -> right -> left"):
        order_parts("-- requires: left\n", parts)


def test_no_name_is_defined_by_two_parts() -> None:
    names = Counter(name for source in read_parts().values() for name in read_names(source).top)
    assert [name for name, times in names.items() if times > 1] == []


def test_scripts_and_python_share_the_class_order_and_the_limits() -> None:
    assert CLASSES == (Priority.URGENT, Priority.NORMAL, Priority.BULK)
    assert read_parts()["constants"] == (
        f"local URGENT, NORMAL, BULK = 0, 1, 2\nlocal MAX_ROWS = {MAX_ROWS}\n"
        f"local MAX_TENANT_LANES = {MAX_TENANT_LANES}\nlocal SCHEMA = {SCHEMA}\n"
        "local RETENTION = 2592000000\nlocal PATIENCE = 86400000\nlocal SETTLED = 7200000\n"
    )


def test_every_script_says_in_its_first_line_what_it_may_do() -> None:
    assert set(read_scripts()) == set(read_bodies())
    for name, source in read_scripts().items():
        assert source.startswith("#!lua"), name
