"""How credentials and routes reach a server: a directory on this machine, or a pod."""
