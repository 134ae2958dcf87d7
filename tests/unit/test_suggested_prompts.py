"""What people are told to draw can be drawn, and what cannot is noted in the result."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.checkpoints.inspect import inspect_checkpoint
from farm.cli import demo
from farm.spec import CheckpointInfo, RenderRequest

ROOT = Path(__file__).parents[2]
PLACES = [
    path
    for folder, pattern in (
        (".", "README.md"), (".", "prompts.jsonl"), ("docs", "*.md"), ("farm", "**/*.py"),
        ("farm", "**/*.html"), ("client", "**/*.py"),
    )
    for path in sorted((ROOT / folder).glob(pattern))
]  # fmt: skip
SUGGESTED = [
    re.compile(pattern)
    for pattern in (
        r'farm submit "([^"]+)"',
        r'submit\("([^"]+)"',
        r'"prompt": "([^"]+)"',
        r'submit_many\(\["([^"]+)", "([^"]+)"',
        r"prompts: \[([^\],]+),",
    )
]


@pytest.fixture(scope="module", params=["shapes-64", "shapes-128"])
def shapes(request: pytest.FixtureRequest) -> CheckpointInfo:
    return inspect_checkpoint(request.param).info


def test_every_suggested_prompt_can_be_drawn_by_what_comes_with_the_farm(
    shapes: CheckpointInfo,
) -> None:
    found = {
        text: path
        for path in PLACES
        for pattern in SUGGESTED
        for match in pattern.findall(path.read_text("utf-8"))
        for text in ([match] if isinstance(match, str) else match)
        if "{" not in text and "…" not in text
    }
    assert len(found) > 15
    prompts = [*found, shapes.example, *demo.TEXTS, *demo.INPAINTED, *demo.PATTERNED]
    unknown = {text: words for text in prompts if (words := shapes.unknown_words(text))}
    assert unknown == {}


def test_the_vocabulary_is_that_of_the_captions(
    shapes: CheckpointInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools" / "shapes")
    import caption

    assert list(shapes.vocabulary) == caption.words()


def test_a_result_notes_what_its_checkpoint_was_not_made_for() -> None:
    info = inspect_checkpoint("shapes-64").info

    def notes(**given: object) -> tuple[str, ...]:
        return info.notes(RenderRequest.parse(given).resolve(info, seed=1))

    assert notes(prompt="a large red circle, on a Blue background") == ()
    assert notes(prompt="a cat on a cat's mat", width=128, height=64) == (
        "prompt: shapes-64 was not trained with: cat, cat's, mat",
        "size: shapes-64 is made for 64 x 64",
    )
    listed = notes(prompt=" ".join(f"w{n}" for n in range(50)))
    assert listed == ("prompt: shapes-64 was not trained with: w0, w1, w2, w3, w4, w5, w6, w7",)


@given(
    st.lists(
        st.sampled_from(["red", "it's", "é", "ring,", "'", "x-ray", "cat's's", "_", "\u2003"])
    ),
    st.sets(st.sampled_from(["red", "it's", "it", "é", "ring", "x-ray", "x", "cat's", "s", "_"])),
)
def test_a_word_is_unknown_however_it_is_looked_for(words: list[str], known: set[str]) -> None:
    info = inspect_checkpoint("shapes-64").info.model_copy(update={"vocabulary": tuple(known)})
    prompt = " ".join(words)
    unknown = [word for word in re.findall(r"\w+(?:'\w+)?", prompt) if word not in known]
    assert info.unknown_words(prompt) == (list(dict.fromkeys(unknown)) if known else [])


def test_a_checkpoint_without_a_vocabulary_takes_any_text() -> None:
    info = inspect_checkpoint("shapes-64").info.model_copy(update={"vocabulary": ()})
    assert info.unknown_words("a cat") == []
    assert "vocabulary" not in info.model_dump()
    assert CheckpointInfo.model_validate(info.model_dump()) == info
