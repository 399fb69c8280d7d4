"""The stage worker: one process per replica of a stage. It pulls jobs due at its stage, runs them, and hands them over.

`stages/` contains the code of the stages, as a pipeline author writes it; the other modules are the worker that runs
it. This package imports only the contracts.
"""
