"""Classifies the products of a graph, and counts the tokens that they see."""
