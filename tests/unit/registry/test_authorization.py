"""Who gets which credential, token and password, and who must not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from layerfs.api import Store
from layerfs.errors import (
    Denied,
    LayerfsError,
    LimitExceeded,
    RegistryError,
)
from layerfs.formats.auth_file import Credential
from tests.faulty_registry import FaultyRegistry, Handler, serving
from tests.store_audit import assert_whole
from tests.unit.registry.faults import (
    QUICK,
    SECRET,
    TOKEN,
    Times,
    both,
    challenge,
    pull,
    recovers,
    redirect,
    status,
)


def test_authorization_never_goes_elsewhere(store: Store, registry: FaultyRegistry) -> None:
    """Not on a redirect to another port, host or scheme, whatever the status; and it comes back for the registry."""
    other = FaultyRegistry(blobs=dict(registry.blobs))
    with serving(other):
        for number in (301, 302, 303, 307, 308):

            def fault(handler: Handler, number: int = number) -> bool:
                if handler.headers.get("Authorization") is None:
                    handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                elif handler.kind == "blobs":
                    handler.answer(number, b"", {"Location": f"http://{other.address}{handler.path}"})
                else:
                    return False
                return True

            registry.fault = fault
            access = replace(QUICK, credential=Credential("me", SECRET))
            pull(store, registry, access)
            assert registry.asked[-1].authorization
            store.remove_image(f"{registry.address}/team/app")
        assert other.count("/blobs/") >= 15
        assert {request.authorization for request in other.asked} == {None}


def test_what_came_with_the_command_is_for_the_named_registry_only(
    store: Store, registry: FaultyRegistry, tmp_path: object
) -> None:
    """Neither a mirror nor the other side of a copy gets the credential or the token of the command."""

    from layerfs.api.copying import copy

    mirror = FaultyRegistry()
    mirror.fault = challenge
    registry.fault = challenge
    with serving(mirror):
        conf = Path(str(tmp_path)) / "registries.conf"
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
            f'[[registry.mirror]]\nlocation = "{mirror.address}"\ninsecure = true\n'
        )
        for given in ({"credential": Credential("me", SECRET)}, {"token": TOKEN}):
            access = replace(QUICK, registries=(str(conf),), **given)
            with contextlib.suppress(RegistryError):
                pull(store, registry, access)
            with contextlib.suppress(LayerfsError):
                access = replace(QUICK, **given)
                copy(f"docker://{registry.address}/team/app", f"docker://{mirror.address}/x", access=access)
        assert mirror.asked
        assert {request.authorization for request in mirror.asked} == {None}
    assert any(request.authorization for request in registry.asked)


def test_a_policy_that_is_not_there_lets_nothing_in(store: Store, registry: FaultyRegistry) -> None:
    with pytest.raises(LayerfsError, match="policy file /nowhere does not exist"):
        pull(store, registry, replace(QUICK, policy="/nowhere"))
    assert store.images() == []


def test_a_challenge_of_a_foreign_host_is_not_answered(store: Store, registry: FaultyRegistry) -> None:
    other = FaultyRegistry()
    other.fault = challenge
    with serving(other):
        registry.fault = both(
            Times(1, status(401, "manifests", WWW_Authenticate='Basic realm="x"')),
            redirect(f"http://{other.address}/x"),
        )
        with pytest.raises(RegistryError, match="answers 401"):
            pull(store, registry, replace(QUICK, credential=Credential("me", SECRET)))
        assert {request.authorization for request in other.asked} == {None}


def test_a_token_in_the_middle_runs_out(store: Store, registry: FaultyRegistry) -> None:
    issued: list[str] = []

    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            issued.append(f"{TOKEN}{len(issued)}")
            handler.answer(200, json.dumps({"token": issued[-1]}).encode())
            return True
        # Each token is good for two requests.
        used = handler.headers.get("Authorization")
        asked = sum(request.authorization == used for request in registry.asked)
        if used is None or used != f"Bearer {issued[-1]}" or asked > 2:
            realm = f'Bearer realm="http://{registry.address}/token",service="s",scope="repository:team/app:pull"'
            handler.answer(401, b"", {"WWW-Authenticate": realm})
            return True
        return False

    registry.fault = fault
    pull(store, registry, replace(QUICK, jobs=1))
    assert len(issued) >= 3
    assert any("scope=repository%3Ateam%2Fapp%3Apull" in request.path for request in registry.asked)
    assert_whole(store)


@pytest.mark.parametrize(
    "answer",
    [b"{", b"[]", b"{}", b'{"token": 1}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b" " * 1_000_000],
)
def test_broken_tokens(store: Store, registry: FaultyRegistry, answer: bytes) -> None:
    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(200, answer)
        else:
            realm = f'Bearer realm="http://{registry.address}/token"'
            handler.answer(401, b"", {"WWW-Authenticate": realm})
        return True

    registry.fault = fault
    with pytest.raises((RegistryError, LimitExceeded), match="token"):
        pull(store, registry)
    recovers(store, registry)


def test_secrets_stay_secret(
    store: Store, registry: FaultyRegistry, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A registry that sends back what it was sent does not get it shown."""

    def fault(handler: Handler) -> bool:
        sent = handler.headers.get("Authorization")
        if sent is None:
            handler.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        else:
            said = {"errors": [{"code": "X", "message": f"you sent {sent} {SECRET}\n\x1b[31m"}]}
            handler.answer(403, json.dumps(said).encode())
        return True

    registry.fault = fault
    credential = Credential("me", SECRET)
    with pytest.raises(Denied, match=r"you sent Basic \*\*\* \*\*\*") as caught:
        pull(store, registry, replace(QUICK, credential=credential))
    shown = f"{caught.value} {caught.value!r} {credential!r} {capfd.readouterr()} {caplog.text}"
    assert SECRET not in shown
    assert credential.basic not in shown
    assert "\x1b" not in shown


def test_a_realm_without_tls_gets_no_password(store: Store, registry: FaultyRegistry, tmp_path_factory: object) -> None:
    from layerfs.registry.authorize import Authorizer
    from layerfs.registry.http import HttpClient

    with HttpClient(QUICK) as http:
        careful = Authorizer(http, "registry.example", Credential("me", SECRET), token=None, insecure=False)
        from layerfs.formats.challenge import parse_challenges

        with pytest.raises(RegistryError, match="without TLS"):
            careful.learn(parse_challenges('Bearer realm="http://example.invalid/token"'), ("repository:a:pull",), None)


@pytest.mark.parametrize("number", [301, 302, 307, 308])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_realm_that_redirects(store: Store, registry: FaultyRegistry, number: int, elsewhere: bool) -> None:
    """The password goes to the realm, and not where that redirects to."""
    other = FaultyRegistry()

    def tokens(handler: Handler) -> bool:
        handler.answer(200, json.dumps({"token": TOKEN}).encode())
        return True

    other.fault = tokens
    with serving(other):
        place = f"http://{other.address}/real" if elsewhere else "/real"

        def fault(handler: Handler) -> bool:
            if handler.path.startswith("/token"):
                handler.answer(number, b"", {"Location": place})
            elif handler.path == "/real":
                return tokens(handler)
            elif handler.headers.get("Authorization") != f"Bearer {TOKEN}":
                realm = f"http://{handler.registry.address}/token"
                handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})
            else:
                return False
            return True

        registry.fault = fault
        pull(store, registry, replace(QUICK, credential=Credential("me", SECRET)))
        assert {asked.authorization for asked in other.asked} <= {None}
        assert bool(other.asked) == elsewhere
        asked = [request for request in registry.asked if request.path.startswith("/token")]
        assert asked
        assert all((request.authorization or "").startswith("Basic ") for request in asked)


def test_a_realm_that_redirects_for_ever(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            handler.answer(302, b"", {"Location": "/token"})
        else:
            realm = f"http://{handler.registry.address}/token"
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}"'})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError, match="redirects more than"):
        pull(store, registry)


@pytest.mark.parametrize("offers", ['Basic realm="x", Bearer realm="{}"', 'Bearer realm="{}", Basic realm="x"'])
def test_a_token_that_does_not_help_where_a_password_would(store: Store, registry: FaultyRegistry, offers: str) -> None:
    def fault(handler: Handler) -> bool:
        given = handler.headers.get("Authorization") or ""
        if handler.path.startswith("/token"):
            handler.answer(200, json.dumps({"token": TOKEN}).encode())
        elif not given.startswith("Basic "):
            realm = f"http://{handler.registry.address}/token"
            handler.answer(401, b"", {"WWW-Authenticate": offers.format(realm)})
        else:
            return False
        return True

    registry.fault = fault
    pull(store, registry, replace(QUICK, credential=Credential("me", SECRET)))


def test_a_helper_for_all_registries_that_is_missing(
    store: Store, registry: FaultyRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason not to pull what everybody may have; one that is for this registry alone is."""
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"credsStore": "not-there"}))
    pull(store, registry, replace(QUICK, auth_files=(str(file),)))
    assert "docker-credential-not-there is not installed" in caplog.text
    file.write_text(json.dumps({"credHelpers": {registry.address: "not-there"}}))
    with pytest.raises(RegistryError, match="is not installed"):
        pull(store, registry, replace(QUICK, auth_files=(str(file),)))


def test_the_hint_names_the_registry(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        realm = f"http://{handler.registry.address}/token"
        handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}"'})
        return True

    registry.fault = fault
    with pytest.raises(RegistryError) as caught:
        pull(store, registry)
    assert caught.value.hint == f"Log in with: layerfs login {registry.address}"


def test_a_token_that_ends_too_soon_is_asked_for_again(store: Store, registry: FaultyRegistry) -> None:
    """Also where the registry would take a password too: nobody has one here."""
    given = 0

    def fault(handler: Handler) -> bool:
        nonlocal given
        if handler.path.startswith("/token"):
            given += 1
            handler.answer(200, json.dumps({"token": f"{TOKEN}{given}", "expires_in": 3600}).encode())
            return True
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}{given}" or (handler.kind == "blobs" and given == 1):
            realm = f"http://{handler.registry.address}/token"
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}", Basic realm="x"'})
            return True
        return False

    registry.fault = fault
    pull(store, registry)
    assert given > 1


@pytest.mark.parametrize("credential", [None, Credential("me", SECRET), Credential("me", "", "identity")])
def test_a_token_that_is_refused_once(store: Store, registry: FaultyRegistry, credential: Credential | None) -> None:
    """The next one may do; and an identity is no password."""
    given = 0

    def fault(handler: Handler) -> bool:
        nonlocal given
        if handler.path.startswith("/token"):
            handler.body()
            given += 1
            handler.answer(200, json.dumps({"token": f"{TOKEN}{given}"}).encode())
            return True
        header = handler.headers.get("Authorization") or ""
        assert not header.startswith("Basic ")
        if header != f"Bearer {TOKEN}2":
            realm = f"http://{handler.registry.address}/token"
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}", Basic realm="x"'})
            return True
        return False

    registry.fault = fault
    pull(store, registry, replace(QUICK, credential=credential))


def test_a_token_that_allows_too_little_is_no_reason_for_a_password(store: Store, registry: FaultyRegistry) -> None:
    def fault(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            more = "more" in handler.path
            handler.answer(200, json.dumps({"token": f"{TOKEN}{'more' if more else ''}"}).encode())
            return True
        header = handler.headers.get("Authorization") or ""
        assert not header.startswith("Basic ")
        if header != f"Bearer {TOKEN}more":
            realm = f"http://{handler.registry.address}/token"
            wanted = ',error="insufficient_scope",scope="repository:team/app:more"' if header else ""
            handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}"{wanted}, Basic realm="x"'})
            return True
        return False

    registry.fault = fault
    pull(store, registry, replace(QUICK, credential=Credential("me", SECRET)))
