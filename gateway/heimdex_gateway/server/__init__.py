"""uvicorn's HTTP protocol, with limits on what a client may send, and with one write for each response."""
