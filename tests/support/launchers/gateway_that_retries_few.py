"""A gateway that retries at most three jobs per request, instead of five hundred."""

from heimdex_gateway.jobs.retry import Retry
from heimdex_gateway.main import main
from tests.support.launchers.arguments import construct_with

construct_with(Retry, max_jobs=3)
main()
