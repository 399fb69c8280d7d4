"""The chaos tests share the fixtures of the fault tests."""

from tests.faults.conftest import duties as duties
from tests.faults.test_cluster import cluster as cluster
