"""The tests. `unit` needs no server, `integration` one server, `system` all processes; `support` is what they share."""
