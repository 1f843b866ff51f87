"""`casa-hub check`: whether a facility is as its hub's configuration says, before its users find out.

One module a subject, each with one coroutine ``look(site)`` that yields what it finds; `runner` runs them side by side.
Nothing is written anywhere but by `probe`, and that is removed again. No finding holds a secret.
"""
