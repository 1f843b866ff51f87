"""Delivery on one machine: servers' directories (`delivery`), and routes by Traefik's file provider (`route_files`)."""
