"""The HTTP/1.1 connection on uvicorn: limits, times and the head of an answer."""
