"""Pure: the services of ``TokenExchange.services``, as an operator writes them, and the presets for some of them.

A preset is here only if a program's code or a facility's configuration that is in use says it. So there is none for
storage, where each site has audiences and paths of its own, and none for ServiceX, whose own tokens are the only ones
that it takes by default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from casa_hub.credentials.base import bad_path
from casa_hub.credentials.scopes import is_audience, is_scope
from casa_hub.credentials.tokens import unverified_claims
from casa_hub.unknown_keys import did_you_mean

#: In the values of `environment`: the path of the delivered file.
PLACEHOLDER = "{file}"

_NAME = re.compile(r"(?=.{1,40}\Z)[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = ("preset", "audience", "scope", "file", "environment")


class Form(StrEnum):
    """What the delivered file holds."""

    #: The token and nothing else.
    TOKEN = "token"  # noqa: S105 - no secret
    #: ``oauth2:TOKEN:USERINFO``, as EOS's clients want it.
    EOS = "eos"

    def content(self, token: str) -> str:
        """What to write for a token. Raises ValueError, whose text is a predicate of the token."""
        if self is Form.TOKEN:
            return token
        # EOS asks this address, without its scheme, who somebody is; it makes the same one for a token without it.
        issuer = unverified_claims(token).get("iss")
        if not isinstance(issuer, str) or not issuer.startswith("https://"):
            raise ValueError("names no issuer with https, which EOS asks who somebody is")
        address = urlsplit(issuer)
        return f"oauth2:{token}:{address.netloc}{address.path.rstrip('/')}/protocol/openid-connect/userinfo"


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a service."""

    #: For people.
    title: str
    audience: str
    scope: str = ""
    file: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    form: Form = Form.TOKEN
    #: Programs that find the file by the variables, for people.
    found_by: str = ""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # lib/rucio/core/oidc.py of Rucio: a server takes tokens with the audience `expected_audience`, which is "rucio"
        # unless the server is configured otherwise, and with all of `expected_scope`, "openid profile". ESCAPE's hub
        # exchanges tokens with just these. The variables are those of Rucio's extension of JupyterLab
        # (docker/container/configure.py); it reads the file as it is.
        "rucio": Preset(
            title="Rucio",
            audience="rucio",
            scope="openid profile",
            environment={"RUCIO_OIDC_AUTH": "file", "RUCIO_OIDC_FILE_NAME": PLACEHOLDER},
            found_by="Rucio's extension of JupyterLab",
        ),
        # Audience: swan-cern/values.yaml of SWAN's charts. File and variables: SWAN's images and its extension
        # SwanOauthRenew write and read them; EOS's client eosxd reads OAUTH2_TOKEN (fusex/auth of EOS), and its servers
        # take the file's content apart in common/OAuth.cc. They ask userinfo with the token. Keycloak refuses that
        # without the scope "openid" (measured at 26.4); the exchange that SWAN uses needs not be asked for it.
        "eos": Preset(
            title="EOS",
            audience="eos-service",
            scope="openid",
            environment={"OAUTH2_FILE": PLACEHOLDER, "OAUTH2_TOKEN": f"FILE:{PLACEHOLDER}"},
            form=Form.EOS,
            found_by="EOS's programs",
        ),
        # Audience: as of EOS. CERNBox's server (Reva, pkg/auth/manager/oidc) asks userinfo, too. CS3's extension of
        # JupyterLab reads the file that its setting `token_path` names.
        "cernbox": Preset(title="CERNBox", audience="cernbox-service", scope="openid"),
    }
)


@dataclass(frozen=True, slots=True)
class Service:
    """One service."""

    name: str
    #: For people: "Rucio".
    title: str
    #: "" to ask for none.
    audience: str
    #: Separated by blanks; "" to ask for none.
    scope: str
    #: Path of its file, below the server's secrets directory.
    file: str
    #: Variable -> text, in which `PLACEHOLDER` stands for the file.
    environment: Mapping[str, str]
    form: Form = Form.TOKEN
    #: Where the operator sets its scope.
    setting: str = "TokenExchange.services"
    #: As `Minter.found_by`.
    found_by: str = ""


def read_services(settings: Mapping[Any, Any]) -> tuple[Service, ...]:
    """The services of the setting. Raises ValueError for a wrong form, with a text that begins with the service."""
    return tuple(_service(name, entry) for name, entry in settings.items())


def _service(name: object, entry: object) -> Service:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!a} is no name: use up to 40 lower-case letters, digits and hyphens, a letter first")
    if not isinstance(entry, Mapping):
        raise ValueError(f"{name} is no mapping of {', '.join(_KEYS)}")  # noqa: TRY004 - a setting's form
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{name} has an unknown key {key!a} ({did_you_mean(str(key), _KEYS).rstrip('.')})")
    texts = {key: _text(name, key, entry[key]) for key in entry if key != "environment"}
    preset = _preset(name, texts)
    audience = texts.get("audience", preset.audience)
    scope = " ".join(texts.get("scope", preset.scope).split())
    if not audience and not scope:
        raise ValueError(f"{name} has neither audience nor scope, so its token would be a copy of the user's own")
    file = texts.get("file") or preset.file or f"{name}_token"
    if bad_path(file):
        raise ValueError(f"{name} has the file {file!a}: give a name, or a name in one directory")
    if "environment" in entry:
        environment = _environment(name, entry["environment"])
    else:
        environment = preset.environment or {f"{name.upper().replace('-', '_')}_TOKEN_FILE": PLACEHOLDER}
    found_by = preset.found_by or (f"programs that read {' or '.join(environment)}" if environment else "")
    title = preset.title if name == texts.get("preset") else name.replace("-", " ").capitalize()
    return Service(name, title, audience, scope, file, environment, preset.form, found_by=found_by)


def _text(name: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        several = "; separate several by blanks" if isinstance(value, list) else ""
        raise ValueError(f"{name} has a value of {key} that is no text{several}")  # noqa: TRY004 - a setting's form
    return value


def _preset(name: str, texts: Mapping[str, str]) -> Preset:
    if "preset" not in texts:
        return Preset(title="", audience="")
    if texts["preset"] not in PRESETS:
        remedy = did_you_mean(texts["preset"], PRESETS).rstrip(".")
        raise ValueError(f"{name} has an unknown preset {texts['preset']!a} ({remedy})")
    return PRESETS[texts["preset"]]


def _environment(name: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} has an environment that is no mapping of variables")  # noqa: TRY004 - a setting's form
    for variable, text in value.items():
        if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
            raise ValueError(f"{name} has {variable!a} in its environment, which is no name of a variable")
        if not isinstance(text, str) or not text.isprintable():
            raise ValueError(f"{name} has a value of {variable} that is no text of one line")
        if set("{}") & set(text.replace(PLACEHOLDER, "")):
            raise ValueError(f"{name} has a wrong placeholder in {variable}: {PLACEHOLDER} is the only one")
    return dict(value)


def wrong_values(services: Sequence[Service]) -> list[tuple[str, str, str]]:
    """Service, problem and remedy of each value that can't work."""
    found: list[tuple[str, str, str]] = []
    owner: dict[str, str] = {}
    for service in services:
        if service.audience and not is_audience(service.audience):
            remedy = "Copy the one that the service expects exactly; it is one word."
            found.append((service.name, f"{service.audience!a} is not an audience", remedy))
        if service.scope and not is_scope(service.scope):
            remedy = "Separate the scopes by blanks. They are ASCII, without quotes and backslashes."
            found.append((service.name, f"{service.scope!a} is not a scope", remedy))
        if "offline_access" in service.scope.split():
            problem = "offline_access asks for a refresh token, which INDIGO IAM refuses and nobody would use"
            found.append((service.name, problem, "Remove it: the hub renews the token by itself."))
        for variable in service.environment:
            if variable == "BEARER_TOKEN_FILE":
                remedy = f"Set Facility.bearer_token_file to {service.file}."
                found.append((service.name, "BEARER_TOKEN_FILE isn't a service's to set", remedy))
            if owner.setdefault(variable, service.name) != service.name:
                problem = f"{variable} is a variable of {owner[variable]}, too"
                found.append((service.name, problem, "Choose another name for one of them."))
    return found
