"""A gateway whose callbacks have a retry delay of 0.1 s, and eight attempts in all."""

from heimdex_callbacks.dispatcher import Dispatcher
from heimdex_gateway.main import main
from tests.support.launchers.arguments import construct_with

construct_with(Dispatcher, retry_delays=(0.1,) * 7)
main()
