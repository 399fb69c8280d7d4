"""uvicorn's HTTP protocol, with bounds on what a client may send and one write for each answer."""
