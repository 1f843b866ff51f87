"""A hub that is killed between any two steps of a start or a stop, and the one that comes after it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.kubernetes.hub.faulty import POD, ROUTE, SECRET, SERVICE, THIS_POD, Faulty, open_faulty
from tests.support.kubernetes.api import Api, eventually
from tests.support.kubernetes.fault_proxy import Answer, Hold
from tests.support.scale import pairs

#: The requests of a start, each of which is held before and after the API server had it.
START = {"Pod": ("POST", POD), "Secret": ("PATCH", SECRET), "Service": ("PATCH", SERVICE)}
START["IngressRouteTCP"] = ("PATCH", ROUTE)
STOP = ("DELETE", THIS_POD)

#: Seconds within which the next hub has looked after what was left: it looks at once, and after five; then only after
#: a minute. On a machine that is not busy, eight are enough.
SOON = 30.0


@pytest.fixture(scope="module")
def shared(plane: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    with open_faulty(plane, tmp_path_factory) as site:
        yield site


@pytest.fixture
def site(shared: Faulty) -> Iterator[Faulty]:
    """With a hub that runs, and nothing else."""
    if shared.hub.process is None or shared.hub.process.poll() is not None:
        shared.hub.start()
    yield shared
    shared.proxy.clear()
    shared.hub.start() if shared.hub.process.poll() is not None else None
    for user in list(shared.hub.api("GET", "/users").json()):
        if user["servers"]:
            shared.stop(user["name"])
    shared.nothing_left()


def kill(site: Faulty) -> None:
    site.hub.stop(signal.SIGKILL)


def running(site: Faulty, user: str = "ada") -> bool:
    server = site.hub.api("GET", f"/users/{user}").json()["servers"].get("")
    return bool(server and server["ready"])


def whole_or_gone(site: Faulty, user: str = "ada") -> None:
    """Soon: a server that runs has all that is its own; of one that doesn't nothing is there."""
    site.settle(user)
    begun = time.monotonic()
    if running(site, user):
        site.whole(user)
    else:
        site.nothing_left(timeout=SOON)
    assert time.monotonic() - begun < SOON


def starts_and_stops(site: Faulty, user: str = "ada") -> None:
    if running(site, user):
        site.stop(user)
    site.ready(user)
    site.whole(user)
    site.stop(user)
    site.nothing_left()


@pytest.mark.shortened
@pytest.mark.parametrize(("kind", "fate"), pairs(START, ["it-arrives", "it-is-lost"]))
def test_killed_with_a_request_of_a_start_on_its_way(site: Faulty, kind: str, fate: str) -> None:
    rule = site.proxy.on(*START[kind], Hold())
    site.begin("ada")
    rule.wait()
    if kind != "Pod":
        # The others have come through.
        others = {one for one in START if one not in {"Pod", kind}}
        eventually(lambda: all(site.ours()[one] for one in others))
    kill(site)
    if fate == "it-arrives":
        rule.release()
        eventually(lambda: site.list("pods") if kind == "Pod" else site.ours()[kind])
    else:
        rule.drop()
    site.hub.start()
    whole_or_gone(site)
    starts_and_stops(site)


def test_killed_with_a_creation_on_its_way_that_arrives_when_the_next_hub_has_looked(site: Faulty) -> None:
    rule = site.proxy.on("POST", POD, Hold())
    site.begin("ada")
    rule.wait()
    kill(site)
    site.hub.start()
    site.settle("ada")
    rule.release()
    eventually(lambda: site.list("pods"))
    site.nothing_left(timeout=120)  # at the second look, or a minute later if it comes even after that
    starts_and_stops(site)


def test_killed_when_all_is_there_but_the_pod_does_not_run_yet(
    plane: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_faulty(plane, tmp_path_factory, pods=False) as site:
        site.begin("ada")
        eventually(lambda: all(site.ours().values()))
        kill(site)
        site.hub.start()
        # Nothing of it is half done, so JupyterHub decides: nobody answers at its address within `http_timeout`.
        eventually(lambda: site.list("pods") == [])
        site.nothing_left()


@pytest.mark.parametrize("arrives", [True, False], ids=["it-arrives", "it-is-lost"])
def test_killed_with_the_undoing_of_a_failed_start_on_its_way(site: Faulty, arrives: bool) -> None:
    site.proxy.on("PATCH", SECRET, Answer(403))
    rule = site.proxy.on(*STOP, Hold())
    site.begin("ada")
    rule.wait()
    kill(site)
    rule.release() if arrives else rule.drop()
    site.hub.start()
    whole_or_gone(site)
    starts_and_stops(site)


@pytest.mark.parametrize("arrives", [True, False], ids=["it-arrives", "it-is-lost"])
@pytest.mark.parametrize("after", [False, True], ids=["the-request", "the-answer"])
def test_killed_with_a_stop_on_its_way(site: Faulty, after: bool, arrives: bool) -> None:
    site.ready("ada")
    rule = site.proxy.on(*STOP, Hold(after=after))
    assert site.hub.api("DELETE", "/users/ada/servers/").status_code in {202, 204}
    rule.wait()
    kill(site)
    rule.release() if arrives else rule.drop()
    if arrives or after:
        eventually(lambda: site.list("pods") == [])
    site.hub.start()
    whole_or_gone(site)
    starts_and_stops(site)


def test_killed_after_a_stop_that_failed(site: Faulty) -> None:
    """JupyterHub's database says by then that the server is stopped, and the pod runs on."""
    site.ready("ada")
    forbidden = site.proxy.on(*STOP, Answer(403), times=1000)
    site.stop("ada")
    kill(site)
    forbidden.drop()
    site.proxy.clear()
    assert len(site.list("pods")) == 1
    site.hub.start()
    site.nothing_left(timeout=SOON)
    starts_and_stops(site)


def test_killed_between_the_pods_end_and_the_start_of_the_next(site: Faulty) -> None:
    """A pod of a start before is in the way, and the hub dies when it has asked for its removal."""
    site.ready("ada")
    site.proxy.on(*STOP, Answer(403), times=2)
    site.stop("ada")
    rule = site.proxy.on(*STOP, Hold(after=True))
    site.begin("ada")
    rule.wait()
    kill(site)
    site.hub.start()
    whole_or_gone(site)
    starts_and_stops(site)


def test_a_running_server_of_before_is_the_next_hubs(site: Faulty) -> None:
    site.ready("ada")
    pod = site.whole("ada")
    kill(site)
    site.hub.start()
    eventually(lambda: running(site))
    assert site.whole("ada")["metadata"]["uid"] == pod["metadata"]["uid"]

    (site.hub.directory / "token").write_text("a-newer-one")
    token = site.token_of("ada")

    def renewed() -> bool:
        assert site.hub.api("GET", "/user", token=token).ok  # the authenticator refreshes what it knows of her
        return site.files(pod).get("access_token") == b"a-newer-one"

    eventually(renewed)
    (site.hub.directory / "token").unlink()
    site.stop("ada")
    site.nothing_left()


def test_the_pod_of_a_running_server_that_went_meanwhile_leaves_nothing(plane: Api, site: Faulty) -> None:
    site.ready("ada")
    kill(site)
    plane.request("DELETE", f"{site.pods}/jupyter-ada")
    site.hub.start()
    site.settle("ada")
    assert not running(site)
    site.nothing_left(timeout=SOON)


def test_servers_that_the_database_does_not_know_are_left_alone(site: Faulty) -> None:
    """A hub with a new database must not end everybody's servers."""
    site.ready("ada")
    pod = site.whole("ada")
    kill(site)
    database = site.hub.directory / "hub.sqlite"
    database.rename(database.with_name("kept.sqlite"))
    since = len(site.hub.log)
    site.hub.start()
    site.ready("bob")  # a look of the hub is over by then
    assert site.whole("ada")["metadata"]["uid"] == pod["metadata"]["uid"]
    assert "Removing pod" not in site.hub.log[since:]
    site.stop("bob")
    kill(site)
    database.with_name("kept.sqlite").replace(database)
    site.hub.start()
    eventually(lambda: running(site))
