"""docs/reference.md is what the traits say."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from casa_hub.credentials.xcache import XCache
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_current(generator: ModuleType) -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == generator.page(), f"run: {generator.WRITE}"


def test_it_follows_the_settings(generator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(XCache.class_traits()["port"], "help", "Another help.")
    assert "Another help." in generator.page()
