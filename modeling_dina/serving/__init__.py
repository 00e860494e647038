"""The reward server: protocol, batching, HTTP application, and deployment on a Ray cluster."""

# Environment variable with the bearer token that clients must send.
TOKEN_VARIABLE = "DINA_SERVER_TOKEN"
