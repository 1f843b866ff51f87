"""What a server holds: one module a credential, all with the interface of `casa_hub.credentials.base`."""
