"""Cards: the YAML block at the top of a README.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from .messages import Answer, Request
from .model import Tree
from .routing import route

if TYPE_CHECKING:
    from .hub import Hub

BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def parse_card(text: str) -> dict[str, Any]:
    """Returns a card's metadata, empty where there is none; raises ValueError where it is no YAML mapping."""
    block = BLOCK.match(text)
    try:
        metadata = yaml.safe_load(block.group(1)) if block else None
    except yaml.YAMLError as error:
        raise ValueError(f"YAML metadata: {error}") from error
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError("YAML metadata: metadata must be a mapping")
    return metadata or {}


def card_of(tree: Tree) -> dict[str, Any]:
    """Returns the metadata of a commit's card; a broken card has none."""
    if "README.md" not in tree:
        return {}
    try:
        return parse_card(tree["README.md"].data.decode("utf-8", "replace"))
    except ValueError:
        return {}


@route("POST", r"/api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Answer:
    """Checks the card that a client is about to commit."""
    try:
        card = parse_card(request.json()["content"])
    except ValueError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
    return Answer({"errors": [], "warnings": warnings})
