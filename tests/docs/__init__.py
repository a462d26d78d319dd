"""Tests of the documentation: its commands, snippets, links and generated pages."""
