"""Delivery to pods. Pure modules: `manifests` and `routes` (the objects), `pod` (changes to a pod), `ownership` (whose an
object is). Modules with I/O: `api`, `delivery` (creates and removes objects), `presence` (lists them), `leftovers`.
"""
