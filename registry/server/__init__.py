"""The HTTP form of the registry: ASGI, Starlette, uvicorn."""
