"""The same work implemented with other job systems, for comparison."""
