"""What the OpenAPI document says beyond the routes' own signatures."""
