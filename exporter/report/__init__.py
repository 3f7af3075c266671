"""Defines the report of a compile, and the tables that commands print."""
