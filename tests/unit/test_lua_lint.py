"""Undefined and unused names in the queue's Lua are found before a server runs it."""

import pytest
from lua_lint import lint, lint_queue

PART = "local function greet(name) return name end\n"


def findings(script: str, part: str = PART, requires: tuple[str, ...] = ("parts/p",)) -> list[str]:
    required = {"s": list(requires), "parts/p": []}
    return [str(found) for found in lint({"s": script}, {"parts/p": part}, required)]


def test_the_queues_scripts_have_no_undefined_and_no_unused_names() -> None:
    assert lint_queue() == []


def test_what_is_in_order_is_not_reported() -> None:
    script = """
        local limit = tonumber(ARGV[1])
        local found = {}
        for at, key in ipairs(KEYS) do
          local name = greet(key)
          if at <= limit then found[name] = {limit = at, [at] = true} end
        end
        repeat local last = redis.call('LPOP', KEYS[1]) until not last
        local function deep(n) if n > 0 then return deep(n - 1) end end
        for n = 1, 2 do deep(n) end
        for _, value in pairs(found) do found.other, found.more = value, found.other end
        return found
    """
    assert findings(script) == []


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("return greet(nobody)", "s.lua:1: nobody is not defined"),
        ("return greet(later)\n", "s.lua:1: later is not defined"),
        ("other = greet(1)", "s.lua:1: other is not defined"),
        ("local n = n\nreturn greet(n)", "s.lua:1: n is not defined"),
        ("do local n = 1 greet(n) end\nreturn n", "s.lua:2: n is not defined"),
        ("for at = 1, 2 do greet(at) end return at", "s.lua:1: at is not defined"),
        ("local n, m = 1, 2\nreturn greet(n)", "s.lua:1: m is never used"),
        ("local n\nn = 1\nreturn greet(2)", "s.lua:1: n is never used"),
        ("local f = function(n, m) return n end return greet(f)", "s.lua:1: m is never used"),
        ("for at = 1, 2 do greet(1) end", "s.lua:1: at is never used"),
        ("local t = {n = 1} return greet(t.n, n)", "s.lua:1: n is not defined"),
        ("return 1", "s.lua:1: requires parts/p and uses nothing of it"),
        ("local greet = greet return greet", "s.lua:1: greet is defined in parts/p too"),
        ("return greet(", "s.lua:1: does not parse"),
    ],
)
def test_what_is_wrong_is_reported_with_its_line(script: str, found: str) -> None:
    assert found in findings(script)


def test_a_part_that_is_not_required_defines_nothing() -> None:
    assert "s.lua:1: greet is not defined" in findings("return greet(1)", requires=())


def test_a_part_whose_function_no_script_uses_is_reported() -> None:
    part = PART + "local function part(name) return name end\n"
    assert findings("return greet(1)", part) == ["parts/p.lua:2: part is never used"]
