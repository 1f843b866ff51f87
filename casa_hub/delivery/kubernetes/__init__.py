"""Delivery to pods.

In the order in which to read them:

- `manifests`, `routes` (the objects of a server), `ownership` (whose an object is), `pod` (changes to a pod): pure;
- `api` (one request), `delivery` (creates and removes objects), `presence` (which objects exist), `leftovers`;
- `sidecar.sh` runs in the pod.
"""
