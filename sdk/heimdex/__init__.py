"""What an author of pipelines imports. Empty so far: pipelines are declared with `heimdex_contracts.pipelines`."""
