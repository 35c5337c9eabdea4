"""Engines start workers. They differ in how; nothing above them does."""
