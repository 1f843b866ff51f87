"""Delivery to pods. Pure: what is applied (`manifests`, `routes`, `pod`) and whose it is (`marks`). Shell: `delivery`
makes it by `api`, `presence` sees what is there, `leftovers` looks after what could not be taken away.
"""
