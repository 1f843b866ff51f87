pytest_plugins = ["casa_hub.testing"]
