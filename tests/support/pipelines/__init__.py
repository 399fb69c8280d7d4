"""Job types for the tests: name one of these modules in HEIMDEX_PIPELINES (`with_pipelines` spells it)."""


def with_pipelines(*modules: str) -> dict[str, str]:
    """The setting that adds these modules of this package to the pipelines that ship."""
    names = ["heimdex_contracts.mock_process", *(f"{__name__}.{module}" for module in modules)]
    return {"HEIMDEX_PIPELINES": ",".join(names)}
