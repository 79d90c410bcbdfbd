"""JSON into dataclasses: what is refused, in one bounded line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from malformed import nested

from offline.documents import as_document, read_document, read_json
from offline.errors import InputError, did_you_mean, shown


@dataclass(frozen=True)
class Settings:
    steps: int
    rates: tuple[float, ...] = ()
    kind: Literal["one", "two"] = "one"


def test_a_document_is_read_from_text_and_from_a_file(tmp_path: Path) -> None:
    text = '{"steps": 3, "rates": [1, 2.5], "unknown": null}'
    assert read_document(text, Settings) == Settings(3, (1.0, 2.5))
    (tmp_path / "s.json").write_text(text)
    assert read_document(tmp_path / "s.json", Settings) == Settings(3, (1.0, 2.5))
    assert as_document({"steps": 3}, Settings, "it") == Settings(3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", 'it has no "steps"'),
        ('{"steps": "3"}', 'it: "steps" should be an integer, received "3"'),
        ('{"steps": true}', 'it: "steps" should be an integer, received true'),
        ('{"steps": 3, "rates": [0, null]}', 'it: "rates.1" should be a number, received null'),
        ('{"steps": 3, "kind": "three"}', "it: \"kind\" should be 'one' or 'two', received"),
        ("[]", "it: should be a JSON object, received []"),
        ("null", "it: should be a JSON object, received null"),
        ("{", "it is not JSON (EOF while parsing an object"),
        ('{"steps": ' + nested() + "}", "it is not JSON (recursion limit exceeded"),
        ('{"steps": "' + "x" * 100_000 + '"}', 'received "' + "x" * 80 + '..."'),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_document(text, Settings, "it")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_any_json_is_bounded_in_depth() -> None:
    assert read_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(InputError, match="recursion limit"):
        read_json(nested(), "it")


def test_received_values_are_cut() -> None:
    assert shown("a\nb") == "a\\nb"
    assert shown("x" * 100) == "x" * 80 + "..."
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert len(shown(deep)) < 80
    assert len(did_you_mean("none", [f"name{i}" * 30 for i in range(1000)])) < 800
