"""A gateway that retries at most three jobs at once, instead of five hundred."""

from heimdex_gateway.main import main
from heimdex_gateway.routes import actions

actions.MAX_AT_ONCE = 3
main()
