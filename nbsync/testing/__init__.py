"""Shipped for tests: faults to inject into ranks. Nothing here is imported by nbsync itself."""
