"""Delivery to pods. Pure: what is applied (`manifests`, `routes`, `pod`) and whose it is (`marks`). Shell: `delivery`
settles what is delivered, `courier` brings it by `api`, `leftovers` looks after what could not be taken away.
"""
