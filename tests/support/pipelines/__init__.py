"""Job types for the tests. HEIMDEX_PIPELINES enables their modules; `with_pipelines` returns its value."""


def with_pipelines(*modules: str) -> dict[str, str]:
    """Return the setting that adds these modules of this package to the built-in pipelines."""
    names = ["heimdex_contracts.mock_process", *(f"{__name__}.{module}" for module in modules)]
    return {"HEIMDEX_PIPELINES": ",".join(names)}
