"""What the Hub stand-in refuses in a card: `validate-yaml`, with the checks of the real one that adapters meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

# https://huggingface.co/docs/hub/repositories-licenses, and the Llama versions since.
LICENSES: Final = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense
    zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
    """.split()
)

# The names in packages/tasks/src/pipelines.ts of https://github.com/huggingface/huggingface.js.
PIPELINE_TAGS: Final = frozenset(
    """
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation text2text-generation fill-mask sentence-similarity
    text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
    multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    visual-question-answering document-question-answering zero-shot-image-classification graph-ml mask-generation
    zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction video-text-to-text keypoint-detection
    visual-document-retrieval any-to-any biology other
    """.split()
)

_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
_RELATIONS = frozenset({"adapter", "merge", "quantized", "finetune"})


def metadata(card: str) -> dict[str, Any]:
    """Return a card's metadata, empty where there is none that parses."""
    block = _BLOCK.match(card)
    try:
        found = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def card_answer(card: str, kind: str) -> tuple[int, dict]:
    """Return the status and body with which `validate-yaml` answers for a card."""
    block = _BLOCK.match(card)
    if block is None or not block[1].strip():
        warning = "empty or missing yaml metadata in repo card"
        return 200, {"errors": [], "warnings": [{"message": warning}]}
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return 400, {"errors": [{"message": f"YAML Metadata Error: {error}"}], "warnings": []}
    if not isinstance(data, dict):
        return 400, {"errors": [{"message": "YAML Metadata Error: the metadata is no mapping"}], "warnings": []}
    errors = [*_common_errors(data), *(_model_errors(data) if kind == "model" else ())]
    return 400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []}


def _common_errors(data: dict[str, Any]) -> Iterator[str]:
    licenses = data.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            yield f'"license" must be one of the known identifiers, or other; found {name!r}'
        if name == "other" and not (data.get("license_name") and data.get("license_link")):
            yield '"license_name" and "license_link" are needed with "license: other"'
    for key in ("tags", "datasets", "metrics", "language"):
        value = data.get(key, [])
        if not (isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))):
            yield f'"{key}" must be a string or an array of strings'


def _model_errors(data: dict[str, Any]) -> Iterator[str]:
    bases = data.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not (isinstance(base, str) and _REPO_ID.fullmatch(base)):
            yield f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
    if data.get("base_model_relation", "adapter") not in _RELATIONS:
        yield f'"base_model_relation" must be one of {", ".join(sorted(_RELATIONS))}'
    if data.get("pipeline_tag", "other") not in PIPELINE_TAGS:
        yield f'"pipeline_tag" with value "{data["pipeline_tag"]}" is not known'
    if "library_name" in data and not isinstance(data["library_name"], str):
        yield '"library_name" must be a string'
    yield from _result_errors(data.get("model-index", []))


def _result_errors(index: object) -> Iterator[str]:
    for model in index if isinstance(index, list) else [None]:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield '"model-index[0].name" is required'
            continue
        for number, result in enumerate(model.get("results") or []):
            at = f'"model-index[0].results[{number}]'
            if "type" not in result.get("task", {}):
                yield f'{at}.task.type" is required'
            if not {"type", "name"} <= set(result.get("dataset", {})):
                yield f'{at}.dataset" needs type and name'
            if not all({"type", "value"} <= set(metric) for metric in result.get("metrics") or [{}]):
                yield f'{at}.metrics" need type and value'
