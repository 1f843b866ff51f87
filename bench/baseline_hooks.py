"""What the hub hooks of Coffea-Casa do, reduced to what costs time, as the other side of the comparison.

From reading its public charts (secret_creation_hook.py, auth.py): a blocking client on the hub's event loop, three
RSA-2048 keys for each start, a Service and a route deleted and made anew, an annotation that all users share read and
written back, and a Secret that stays after the server. Its client (`kubernetes`) also makes objects of every answer;
this one (`requests`) doesn't, so the comparison is in its favour.
"""

import base64
import json
import os
from pathlib import Path

import requests
from kubespawner.slugs import safe_slug
from rsa_certificates import rsa_certificates


class Client:
    """Blocking, one connection, as it is there."""

    def __init__(self):
        config = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
        self.url = config["clusters"][0]["cluster"]["server"]
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = config["clusters"][0]["cluster"]["certificate-authority"]
        self.session.headers["Authorization"] = f"Bearer {config['users'][0]['user']['token']}"

    def __call__(self, method, path, body=None, content_type="application/json"):
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        return self.session.request(method, self.url + path, data=data, headers=headers, timeout=30)


client = Client()


def paths(spawner):
    core = f"/api/v1/namespaces/{spawner.namespace}"
    routes = f"/apis/traefik.io/v1alpha1/namespaces/{spawner.namespace}/ingressroutetcps"
    return f"{core}/secrets", f"{core}/services", routes, safe_slug(spawner.user.name)


def put(path, name, body):
    """Read, then write or make."""
    if client("GET", f"{path}/{name}").status_code == 404:
        client("POST", path, body).raise_for_status()
    else:
        client("PATCH", f"{path}/{name}", body, "application/merge-patch+json").raise_for_status()


def anew(path, name, body):
    client("DELETE", f"{path}/{name}")
    client("POST", path, body).raise_for_status()


async def pre_spawn(spawner):
    secrets, services, routes, name = paths(spawner)
    names = ("ca.pem", "ca.key", "hostcert.pem", "host.key", "usercert.pem", "user.key")
    files = dict(zip(names, rsa_certificates(), strict=True))
    data = {key: base64.b64encode(content).decode() for key, content in files.items()}
    data |= {
        "condor_token": base64.b64encode(b"x" * 300).decode(),
        "xcache_token": base64.b64encode(b"x" * 300).decode(),
    }
    put(secrets, f"{name}-secrets", {"metadata": {"name": f"{name}-secrets"}, "data": data})
    ports = [{"name": "dask", "port": 8786}, {"name": "worker", "port": 8788}]
    anew(services, name, {"metadata": {"name": name}, "spec": {"selector": {"jhub_user": name}, "ports": ports}})
    shared = client("GET", f"{services}/traefik").json()
    hosts = shared["metadata"].setdefault("annotations", {}).get("hosts", "")
    shared["metadata"]["annotations"]["hosts"] = f"{hosts},{name}.dask.example.org"
    client(
        "PATCH",
        f"{services}/traefik",
        {"metadata": {"annotations": shared["metadata"]["annotations"]}},
        "application/merge-patch+json",
    )
    for kind in ("dask", "dask-worker"):
        body = {
            "apiVersion": "traefik.io/v1alpha1",
            "kind": "IngressRouteTCP",
            "metadata": {"name": f"{name}-{kind}"},
            "spec": {
                "entryPoints": [kind.replace("-", "")],
                "routes": [
                    {"match": f"HostSNI(`{name}.{kind}.example.org`)", "services": [{"name": name, "port": 8786}]}
                ],
                "tls": {"passthrough": True},
            },
        }
        anew(routes, f"{name}-{kind}", body)
    spawner.volumes = [{"name": "secrets", "secret": {"secretName": f"{name}-secrets"}}]
    spawner.volume_mounts = [{"name": "secrets", "mountPath": "/etc/cmsaf-secrets"}]


def post_stop(spawner):
    _, services, routes, name = paths(spawner)
    client("DELETE", f"{services}/{name}")
    for kind in ("dask", "dask-worker"):
        client("DELETE", f"{routes}/{name}-{kind}")
