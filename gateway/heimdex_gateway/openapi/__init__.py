"""The parts of the OpenAPI document that do not follow from the signatures of the routes."""
