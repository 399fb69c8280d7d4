"""The stage workers: one process per replica of a stage. Takes jobs due at its stage, runs them, hands them over.

`stages/` holds what a pipeline author writes; everything else here is the loop around it. Imports only contracts.
"""
