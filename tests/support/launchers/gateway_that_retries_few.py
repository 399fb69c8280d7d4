"""A gateway that runs three jobs again at once, where others run five hundred."""

from heimdex_gateway.main import main
from heimdex_gateway.routes import actions

actions.MAX_AT_ONCE = 3
main()
