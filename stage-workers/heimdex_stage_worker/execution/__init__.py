"""One attempt of a stage: in this process, in a thread, or in a process of its own; and when which."""
