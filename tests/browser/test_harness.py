"""What is wrong with a page fails its test: `tests.support.chromium` at pages that no hub has."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Route

from tests.support.chromium import OpenTab, Tab, serious_faults
from tests.support.hub import Hub

pytestmark = pytest.mark.debian


@pytest.fixture
def tab(tmp_path: Path, open_tab: OpenTab) -> Tab:
    """At a hub that doesn't run: a test says what it answers."""
    return open_tab(Hub(tmp_path, ""))


def show(tab: Tab, body: str, path: str = "/hub/page") -> None:
    def answer(route: Route) -> None:
        if route.request.url == tab.hub.url + path:
            route.fulfill(content_type="text/html", body=f"<!doctype html><html lang=en><title>Page</title>{body}")
        elif route.request.url.startswith(tab.hub.url):
            route.fulfill(status=404, body="")
        else:
            route.continue_()

    tab.page.route("**", answer)
    tab.page.goto(path, wait_until="networkidle")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>nothing()</script>", "JavaScript: nothing is not defined"),
        ("<script>Promise.reject(new Error('lost'))</script>", "JavaScript: lost"),
        ("<script>console.error('told')</script>", "console: told"),
        ("<script src=gone.js></script>", "GET {url}/hub/gone.js: 404"),
        ("<script>fetch('refused', {{method: 'POST'}})</script>", "POST {url}/hub/refused: 404"),
        ("<img alt=far src=http://far.example.org/>", "GET http://far.example.org/: net::ERR_NAME_NOT_RESOLVED"),
    ],
)
def test_what_goes_wrong_on_a_page_is_a_fault(tab: Tab, body: str, fault: str) -> None:
    show(tab, body.format())
    assert tab.faults == [f"{tab.hub.url}/hub/page: {fault.format(url=tab.hub.url)}"]
    tab.faults.clear()


def test_a_sound_page_has_no_fault(tab: Tab) -> None:
    show(tab, "<h1>Sound</h1><button class=btn-jupyter style='color: white; background: #f37524'>Go</button>")
    assert serious_faults(tab.page) == []
    assert not tab.too_wide()


def test_axe_s_serious_faults_are_told_with_their_elements(tab: Tab) -> None:
    show(tab, "<button></button><p style='color: #ccc; background: white'>Pale</p>")
    contrast, name = sorted(serious_faults(tab.page), key=lambda text: "button-name" in text)
    assert contrast.startswith("axe, color-contrast: ")
    assert ">Pale</p>" in contrast
    assert name.startswith("axe, button-name: ")


def test_a_page_that_is_wider_than_the_window_is_told(tab: Tab) -> None:
    show(tab, "<p style='width: 2000px'>Wide")
    assert tab.too_wide()
