"""The JSON Schema of search spaces agrees with what loading accepts, except for rules between keys."""

import json
from pathlib import Path

import jsonschema
import pytest

from raysweep.errors import UserError
from raysweep.space import space, yaml_file
from raysweep.space.schema import json_schema

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "schema" / "search-space.json"
GOOD = [
    "study: a\n",
    "study: a\ntrial: {method: vae_align, iterations: {integers: [1000, 4000]}}\n",
    "study: a\ntrial: {method: {choice: [none, {kind: sra, t_offset: {uniform: [0.1, 0.3]}}]}}\n",
    "study: a\ntrial: {method: {kind: layersync, layers: [16, 8]}, backbone: SiT-XL/2}\n",
    "study: a\ntrial: {method: {kind: layersync, layers: [[16, 8], [8, 4]]}, backbone: SiT-XL/2}\n",
    "study: a\ntrial: {method: {kind: vae_align, weight: {steps: [0, 1000], weights: [0.5, 0.1], curve: linear}}}\n",
    "study: a\ntrial: {optimizer: {lr: {log_uniform: [1e-5, 1e-3], default: 1e-4}, grad_clip: null}}\n",
    "study: a\ntrial: {method: {kind: self_guided, stop: {choice: [never, 1000]}, teacher: {method: none}}}\n",
    "study: a\nsearch: {scheduler: {eta: 3, noise: paired}, sampler: gp, rungs: []}\n",
    "study: a\nsearch: {scheduler: promotion}\nlaunch: {workers: [1, 2]}\n",
    "study: a\nprobe: {metrics: [kid, precision], families: {LightningDiT: {steps: 50}}}\n",
    "study: a\ntrial: {seed: {choice: [0, 1, 2]}}\nenqueue: [{set: {seed: 1}, fid: 3.5, is: 60}]\n",
]
BAD = [
    "trial: {}\n",
    "study: A b\n",
    "study: a\ntrail: {}\n",
    "study: a\nsteps_divisor: 3\n",
    "study: a\ntrial: {method: vae_aling}\n",
    "study: a\ntrial: {method: {kind: vae_align, layers: [8, 6]}}\n",
    "study: a\ntrial: {method: {weight: 0.5}}\n",
    "study: a\ntrial: {iterations: soon}\n",
    "study: a\ntrial: {iterations: {choise: [1, 2]}}\n",
    "study: a\ntrial: {iterations: {choice: []}}\n",
    "study: a\ntrial: {optimizer: {lr: {log_uniform: [1e-4]}}}\n",
    "study: a\ntrial: {optimizer: {lr: {uniform: [1e-4, 1e-3], choice: [1]}}}\n",
    "study: a\ntrial: {precision: fp16}\n",
    "study: a\ntrial: {method: {kind: self_guided, teacher: {age: 3}}}\n",
    "study: a\nsearch: {scheduler: {kind: asha, eta: 1}}\n",
    "study: a\nsearch: {scheduler: ashaa}\n",
    "study: a\nsearch: {sampler: bayes}\n",
    "study: a\nprobe: {samples: 1}\n",
    "study: a\nlaunch: {workers: [1, 2, 3]}\n",
    "study: a\nenqueue: [{set: {}, fidd: 3}]\n",
]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = json_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_committed_schema_is_up_to_date():
    """If not: raysweep schema > docs/schema/search-space.json"""
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_committed_spaces_are_valid_and_name_the_schema(path, validator):
    assert [error.message for error in validator.iter_errors(yaml_file.read(path).tree)] == []
    named = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / named).resolve() == COMMITTED


@pytest.mark.parametrize("text", GOOD)
def test_spaces_that_load_are_valid_in_the_schema(text, validator, write_space):
    space.load(write_space(text))
    assert [error.message for error in validator.iter_errors(yaml_file.parse(text))] == []


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused_by_key_or_type_is_invalid(text, validator, write_space):
    with pytest.raises(UserError):
        space.load(write_space(text))
    assert not validator.is_valid(yaml_file.parse(text))


def test_every_key_has_a_description_to_show():
    """But for `kind`, which names what its mapping says, and the words of domains."""

    def properties(node):
        if isinstance(node, dict):
            yield from node.get("properties", {}).items()
            for value in node.values():
                yield from properties(value)
        elif isinstance(node, list):
            for value in node:
                yield from properties(value)

    silent = {key for key, value in properties(json_schema()) if "description" not in value and "$ref" not in value}
    assert silent <= {"kind", "layers"}
