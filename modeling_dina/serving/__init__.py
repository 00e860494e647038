"""The reward server: its protocol, its batching, its HTTP application, and the same on a Ray cluster."""

# The environment variable whose value clients must send as a bearer token.
TOKEN_VARIABLE = "DINA_SERVER_TOKEN"
