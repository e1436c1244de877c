"""The schemas that are shipped are those of the dataclasses; `json_schemas.py` makes them."""

import json

import jsonschema
import pytest
from json_schemas import FILES, OUTPUTS, check_schema, made


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_shipped_schema_is_that_of_the_output(name: str) -> None:
    """Else: `python tests/json_schemas.py`."""
    schema = json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == made(name)


def test_each_file_has_an_output() -> None:
    assert {path.stem for path in FILES.iterdir()} == set(OUTPUTS)


def test_a_new_entry_does_not_fit() -> None:
    check = {"name": "a", "passed": True, "figure": ""}
    check_schema("check", {"passed": True, "checks": [check]})
    for wrong in ({"passed": True}, {"passed": True, "checks": [check | {"more": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            check_schema("check", wrong)
